// Registration of NashMTL, FairGrad and PIVRG on the CPU. Schemas are defined in mtlkernels/ops/fair.py.
#include "../solvers/fair.h"

#include <optional>

#include "host.h"

namespace mtlkernels::ops_cpu {
namespace {

std::tuple<Tensor, Tensor> fairgrad(Tensor gram, double alpha, std::optional<Tensor> importance, double max_norm) {
  Problem problem(gram, fair_workspace, fair_ints);
  fair(HostLane{}, problem.k(), task_numbers(importance, "importance", problem.K), problem.tasks, alpha, max_norm,
       problem.w(), problem.s(), problem.workspace.data(), problem.ints.data());
  return problem.answer();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mtlkernels, CPU, m) {
  if (another_backend_is_forced()) return;
  m.impl("fairgrad", TORCH_BOX(&fairgrad));
}

}  // namespace mtlkernels::ops_cpu
