// Registration of ConFIG, IMTL-G and Aligned-MTL on CUDA. Schemas are defined in mtlkernels/ops/spectral.py.
#include "../solvers/aligned.h"
#include "../solvers/equiangular.h"
#include "solve.cuh"

namespace mtlkernels::ops_cuda {
namespace {

namespace mtl = mtlkernels;
using cuda::Warp;

std::tuple<Tensor, Tensor> equiangular(Tensor gram, int64_t length) {
  Problem problem(gram, mtl::equiangular_workspace, task_ints);
  const double* K = problem.k();
  const int tasks = problem.tasks;
  double *w = problem.w(), *workspace = problem.d();
  int64_t* s = problem.s();
  int* ints = problem.i();
  return problem.run("equiangular", [=] __device__(const Warp& lanes) {
    mtl::equiangular(lanes, K, tasks, static_cast<mtl::EquiangularLength>(length), w, s, workspace, ints);
  });
}

std::tuple<Tensor, Tensor> aligned(Tensor gram, std::optional<Tensor> preference, int64_t scale, bool mean) {
  Problem problem(gram, mtl::aligned_workspace, task_ints);
  const double *K = problem.k(), *p = task_numbers(preference, "preference", problem.K);
  const int tasks = problem.tasks;
  double *w = problem.w(), *workspace = problem.d();
  int64_t* s = problem.s();
  int* ints = problem.i();
  return problem.run("aligned", [=] __device__(const Warp& lanes) {
    mtl::aligned(lanes, K, p, tasks, static_cast<mtl::AlignedScale>(scale), mean, w, s, workspace, ints);
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mtlkernels, CUDA, m) {
  if (another_backend_is_forced()) return;
  m.impl("equiangular", TORCH_BOX(&equiangular));
  m.impl("aligned", TORCH_BOX(&aligned));
}

}  // namespace mtlkernels::ops_cuda
