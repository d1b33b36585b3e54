// Registration of NashMTL, FairGrad and PIVRG on CUDA. Schemas are defined in mtlkernels/ops/fair.py.
#include "../solvers/fair.h"
#include "solve.cuh"

namespace mtlkernels::ops_cuda {
namespace {

std::tuple<Tensor, Tensor> fairgrad(Tensor gram, double alpha, std::optional<Tensor> importance, double max_norm) {
  Problem problem(gram, fair_workspace, fair_ints);
  const double *K = problem.k(), *p = task_numbers(importance, "importance", problem.K);
  const int tasks = problem.tasks;
  double *w = problem.w(), *workspace = problem.d();
  int64_t* s = problem.s();
  int* ints = problem.i();
  return problem.run("fairgrad", [=] __device__(const cuda::Warp& lanes) {
    fair(lanes, K, p, tasks, alpha, max_norm, w, s, workspace, ints);
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mtlkernels, CUDA, m) {
  if (another_backend_is_forced()) return;
  m.impl("fairgrad", TORCH_BOX(&fairgrad));
}

}  // namespace mtlkernels::ops_cuda
