// Registration of ConFIG, IMTL-G and Aligned-MTL on the CPU. Schemas are defined in mtlkernels/ops/spectral.py.
#include "../solvers/aligned.h"
#include "../solvers/equiangular.h"

#include <optional>

#include "host.h"

namespace mtlkernels::ops_cpu {
namespace {

std::tuple<Tensor, Tensor> equiangular(Tensor gram, int64_t length) {
  Problem problem(gram, equiangular_workspace, task_ints);
  mtlkernels::equiangular(HostLane{}, problem.k(), problem.tasks, static_cast<EquiangularLength>(length), problem.w(),
                          problem.s(), problem.workspace.data(), problem.ints.data());
  return problem.answer();
}

std::tuple<Tensor, Tensor> aligned(Tensor gram, std::optional<Tensor> preference, int64_t scale, bool mean) {
  Problem problem(gram, aligned_workspace, task_ints);
  mtlkernels::aligned(HostLane{}, problem.k(), task_numbers(preference, "preference", problem.K), problem.tasks,
                      static_cast<AlignedScale>(scale), mean, problem.w(), problem.s(), problem.workspace.data(),
                      problem.ints.data());
  return problem.answer();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mtlkernels, CPU, m) {
  if (another_backend_is_forced()) return;
  m.impl("equiangular", TORCH_BOX(&equiangular));
  m.impl("aligned", TORCH_BOX(&aligned));
}

}  // namespace mtlkernels::ops_cpu
