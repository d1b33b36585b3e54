// Registration of MGDA, IMGrad, DualProj and UPGrad on CUDA. Schemas are defined in mtlkernels/ops/convex.py.
#include "../solvers/cone_projection.h"
#include "../solvers/imgrad.h"
#include "../solvers/mgda.h"
#include "solve.cuh"

namespace mtlkernels::ops_cuda {
namespace {

namespace mtl = mtlkernels;
using cuda::Warp;

std::tuple<Tensor, Tensor> mgda(Tensor gram) {
  Problem problem(gram, mtl::mgda_workspace, mtl::mgda_ints);
  const double* K = problem.k();
  const int tasks = problem.tasks;
  double *w = problem.w(), *workspace = problem.d();
  int64_t* s = problem.s();
  int* ints = problem.i();
  return problem.run("mgda", [=] __device__(const Warp& lanes) { mtl::mgda(lanes, K, tasks, w, s, workspace, ints); });
}

std::tuple<Tensor, Tensor> imgrad(Tensor gram, double c, int64_t form, int64_t rescale) {
  Problem problem(gram, mtl::cagrad_workspace, mtl::cagrad_ints);
  const double* K = problem.k();
  const int tasks = problem.tasks;
  double *w = problem.w(), *workspace = problem.d();
  int64_t* s = problem.s();
  int* ints = problem.i();
  return problem.run("imgrad", [=] __device__(const Warp& lanes) {
    mtl::imgrad(lanes, K, tasks, c, static_cast<mtl::IMGradForm>(form), static_cast<mtl::Rescale>(rescale), w, s,
                workspace, ints);
  });
}

std::tuple<Tensor, Tensor> project(const char* op, const Tensor& gram, const Tensor& preference, bool each) {
  Problem problem(gram, mtl::cone_projection_workspace, mtl::cone_projection_ints);
  const double* shares = preference.numel() ? task_vector(preference, "preference", problem.K) : nullptr;
  const double* K = problem.k();
  const int tasks = problem.tasks;
  double *w = problem.w(), *workspace = problem.d();
  int64_t* s = problem.s();
  int* ints = problem.i();
  return problem.run(op, [=] __device__(const Warp& lanes) {
    mtl::cone_projection(lanes, K, tasks, shares, each, w, s, workspace, ints);
  });
}

std::tuple<Tensor, Tensor> dualproj(Tensor gram, Tensor preference) { return project("dualproj", gram, preference, false); }
std::tuple<Tensor, Tensor> upgrad(Tensor gram, Tensor preference) { return project("upgrad", gram, preference, true); }

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mtlkernels, CUDA, m) {
  if (another_backend_is_forced()) return;
  m.impl("mgda", TORCH_BOX(&mgda));
  m.impl("imgrad", TORCH_BOX(&imgrad));
  m.impl("dualproj", TORCH_BOX(&dualproj));
  m.impl("upgrad", TORCH_BOX(&upgrad));
}

}  // namespace mtlkernels::ops_cuda
