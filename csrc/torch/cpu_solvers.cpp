// Registration of the solvers on the CPU: check, call. Schemas are defined in mtlkernels/ops/solvers.py.
#include "../solvers/avgnorm.h"
#include "../solvers/cagrad.h"
#include "../solvers/pcgrad.h"
#include "../common/draws.h"
#include "host.h"

namespace mtlkernels::ops_cpu {
namespace {

namespace mtl = mtlkernels;

Tensor task_status(Tensor gram) {
  Problem problem(gram, no_doubles, task_ints);
  mtl::screen(mtl::HostLane{}, problem.k(), problem.tasks, problem.s(), problem.ints.data());
  return problem.status;
}

Tensor visiting_order(Tensor seed, Tensor step, int64_t num_tasks) {
  check(num_tasks >= 1 && num_tasks <= mtl::kMaxTasks, "num_tasks must lie in 1 .. ", mtl::kMaxTasks);
  const int64_t shape[] = {num_tasks, num_tasks - 1};
  Tensor order = torch::stable::new_empty(seed, {shape, 2});
  mtl::visiting_order(mtl::HostLane{}, read_word(seed, seed), read_word(step, seed), static_cast<int>(num_tasks),
                      static_cast<int64_t*>(order.mutable_data_ptr()));
  return order;
}

std::tuple<Tensor, Tensor> pcgrad(Tensor gram, Tensor order, bool mean) {
  Problem problem(gram, mtl::pcgrad_workspace, task_ints);
  const int64_t* visits = task_order(order, problem.K);
  mtl::pcgrad(mtl::HostLane{}, problem.k(), visits, problem.tasks, mean, problem.w(), problem.s(),
              problem.workspace.data(), problem.ints.data());
  return problem.answer();
}

std::tuple<Tensor, Tensor> pcgrad_drawn(Tensor gram, Tensor seed, Tensor step, bool mean) {
  Problem problem(gram, mtl::pcgrad_workspace, task_ints);
  const int64_t* key = word_pointer(seed, problem.K);
  int64_t* counter = counter_pointer(step, problem.K);
  std::vector<int64_t> order(mtl::pcgrad_order(problem.tasks));
  mtl::pcgrad_drawn(mtl::HostLane{}, problem.k(), key, counter, problem.tasks, mean, problem.w(), problem.s(),
                    order.data(), problem.workspace.data(), problem.ints.data());
  return problem.answer();
}

std::tuple<Tensor, Tensor> cagrad(Tensor gram, double c, int64_t rescale, bool sum) {
  check(c >= 0 && c < INFINITY, "c must be finite and at least 0");
  check(rescale >= 0 && rescale <= 2, "rescale must be 0, 1 or 2");
  Problem problem(gram, mtl::cagrad_workspace, mtl::cagrad_ints);
  mtl::cagrad(mtl::HostLane{}, problem.k(), problem.tasks, c, static_cast<mtl::Rescale>(rescale), sum, problem.w(),
              problem.s(), problem.workspace.data(), problem.ints.data());
  return problem.answer();
}

std::tuple<Tensor, Tensor> avgnorm(Tensor gram, int64_t scale, double constant) {
  check(scale >= 0 && scale <= static_cast<int64_t>(mtl::NormScale::kHarmonic), "scale must be a NormScale");
  Problem problem(gram, mtl::avgnorm_workspace, task_ints);
  mtl::avgnorm(mtl::HostLane{}, problem.k(), problem.tasks, static_cast<mtl::NormScale>(scale), constant, problem.w(),
               problem.s(), problem.workspace.data(), problem.ints.data());
  return problem.answer();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mtlkernels, CPU, m) {
  if (another_backend_is_forced()) return;
  m.impl("task_status", TORCH_BOX(&task_status));
  m.impl("visiting_order", TORCH_BOX(&visiting_order));
  m.impl("pcgrad", TORCH_BOX(&pcgrad));
  m.impl("pcgrad_drawn", TORCH_BOX(&pcgrad_drawn));
  m.impl("cagrad", TORCH_BOX(&cagrad));
  m.impl("avgnorm", TORCH_BOX(&avgnorm));
}

}  // namespace mtlkernels::ops_cpu
