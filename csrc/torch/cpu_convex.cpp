// Registration of MGDA, IMGrad, DualProj and UPGrad on the CPU. Schemas are defined in mtlkernels/ops/convex.py.
#include "../solvers/cone_projection.h"
#include "../solvers/imgrad.h"
#include "../solvers/mgda.h"
#include "host.h"

namespace mtlkernels::ops_cpu {
namespace {

namespace mtl = mtlkernels;

std::tuple<Tensor, Tensor> mgda(Tensor gram) {
  Problem problem(gram, mtl::mgda_workspace, mtl::mgda_ints);
  mtl::mgda(mtl::HostLane{}, problem.k(), problem.tasks, problem.w(), problem.s(), problem.workspace.data(),
            problem.ints.data());
  return problem.answer();
}

std::tuple<Tensor, Tensor> imgrad(Tensor gram, double c, int64_t form, int64_t rescale) {
  Problem problem(gram, mtl::cagrad_workspace, mtl::cagrad_ints);
  mtl::imgrad(mtl::HostLane{}, problem.k(), problem.tasks, c, static_cast<mtl::IMGradForm>(form),
              static_cast<mtl::Rescale>(rescale), problem.w(), problem.s(), problem.workspace.data(), problem.ints.data());
  return problem.answer();
}

std::tuple<Tensor, Tensor> project(const Tensor& gram, const Tensor& preference, bool each) {
  Problem problem(gram, mtl::cone_projection_workspace, mtl::cone_projection_ints);
  const double* shares = preference.numel() ? task_vector(preference, "preference", problem.K) : nullptr;
  mtl::cone_projection(mtl::HostLane{}, problem.k(), problem.tasks, shares, each, problem.w(), problem.s(),
                       problem.workspace.data(), problem.ints.data());
  return problem.answer();
}

std::tuple<Tensor, Tensor> dualproj(Tensor gram, Tensor preference) { return project(gram, preference, false); }
std::tuple<Tensor, Tensor> upgrad(Tensor gram, Tensor preference) { return project(gram, preference, true); }

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mtlkernels, CPU, m) {
  if (another_backend_is_forced()) return;
  m.impl("mgda", TORCH_BOX(&mgda));
  m.impl("imgrad", TORCH_BOX(&imgrad));
  m.impl("dualproj", TORCH_BOX(&dualproj));
  m.impl("upgrad", TORCH_BOX(&upgrad));
}

}  // namespace mtlkernels::ops_cpu
