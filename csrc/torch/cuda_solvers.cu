// Registration of the solvers on CUDA: check, launch. Schemas are defined in mtlkernels/ops/solvers.py.
#include "../solvers/avgnorm.h"
#include "../solvers/cagrad.h"
#include "../common/draws.h"
#include "../solvers/pcgrad.h"
#include "solve.cuh"

namespace mtlkernels::ops_cuda {
namespace {

namespace mtl = mtlkernels;
using cuda::Warp;

Tensor task_status(Tensor gram) {
  Problem problem(gram, no_doubles, task_ints);
  const double* K = problem.k();
  const int tasks = problem.tasks;
  int64_t* s = problem.s();
  int* ints = problem.i();
  problem.run("task_status", [=] __device__(const Warp& lanes) { mtl::screen(lanes, K, tasks, s, ints); });
  return problem.status;
}

Tensor visiting_order(Tensor seed, Tensor step, int64_t num_tasks) {
  check(num_tasks >= 1 && num_tasks <= mtl::kMaxTasks, "num_tasks must lie in 1 .. ", mtl::kMaxTasks);
  const int64_t *key = word_pointer(seed, seed), *counter = word_pointer(step, seed);
  const OnDevice device(seed);
  const int64_t shape[] = {num_tasks, num_tasks - 1};
  Tensor order = torch::stable::new_empty(seed, {shape, 2});
  auto* visits = static_cast<int64_t*>(order.mutable_data_ptr());
  const int tasks = static_cast<int>(num_tasks);
  cuda::launch_solver(device.stream(), [=] __device__(const Warp& lanes) {
    mtl::visiting_order(lanes, static_cast<uint64_t>(*key), static_cast<uint64_t>(*counter), tasks, visits);
  });
  device.check_launches("visiting_order");
  return order;
}

// An order that names no task is an error that only the device can see: the weights are NaN then.
std::tuple<Tensor, Tensor> pcgrad(Tensor gram, Tensor order, bool mean) {
  Problem problem(gram, mtl::pcgrad_workspace, task_ints);
  const int64_t* visits = order_pointer(order, problem.K);
  const double* K = problem.k();
  const int tasks = problem.tasks;
  double *w = problem.w(), *workspace = problem.d();
  int64_t* s = problem.s();
  int* ints = problem.i();
  return problem.run("pcgrad", [=] __device__(const Warp& lanes) {
    if (cuda::names_tasks(lanes, visits, tasks)) {
      mtl::pcgrad(lanes, K, visits, tasks, mean, w, s, workspace, ints);
    } else {
      mtl::screen(lanes, K, tasks, s, ints);
      mtl::fill(lanes, w, tasks, NAN);
    }
  });
}

std::tuple<Tensor, Tensor> pcgrad_drawn(Tensor gram, Tensor seed, Tensor step, bool mean) {
  Problem problem(gram, mtl::pcgrad_workspace, task_ints);
  const int64_t* key = word_pointer(seed, problem.K);
  int64_t* counter = counter_pointer(step, problem.K);
  Tensor order = problem.vector(ScalarType::Long, mtl::pcgrad_order(problem.tasks));
  auto* visits = static_cast<int64_t*>(order.mutable_data_ptr());
  const double* K = problem.k();
  const int tasks = problem.tasks;
  double *w = problem.w(), *workspace = problem.d();
  int64_t* s = problem.s();
  int* ints = problem.i();
  return problem.run("pcgrad_drawn", [=] __device__(const Warp& lanes) {
    mtl::pcgrad_drawn(lanes, K, key, counter, tasks, mean, w, s, visits, workspace, ints);
  });
}

std::tuple<Tensor, Tensor> cagrad(Tensor gram, double c, int64_t rescale, bool sum) {
  check(c >= 0 && c < INFINITY, "c must be finite and at least 0");
  check(rescale >= 0 && rescale <= 2, "rescale must be 0, 1 or 2");
  Problem problem(gram, mtl::cagrad_workspace, mtl::cagrad_ints);
  const double* K = problem.k();
  const int tasks = problem.tasks;
  double *w = problem.w(), *workspace = problem.d();
  int64_t* s = problem.s();
  int* ints = problem.i();
  return problem.run("cagrad", [=] __device__(const Warp& lanes) {
    mtl::cagrad(lanes, K, tasks, c, static_cast<mtl::Rescale>(rescale), sum, w, s, workspace, ints);
  });
}

std::tuple<Tensor, Tensor> avgnorm(Tensor gram, int64_t scale, double constant) {
  check(scale >= 0 && scale <= static_cast<int64_t>(mtl::NormScale::kHarmonic), "scale must be a NormScale");
  Problem problem(gram, mtl::avgnorm_workspace, task_ints);
  const double* K = problem.k();
  const int tasks = problem.tasks;
  double *w = problem.w(), *workspace = problem.d();
  int64_t* s = problem.s();
  int* ints = problem.i();
  return problem.run("avgnorm", [=] __device__(const Warp& lanes) {
    mtl::avgnorm(lanes, K, tasks, static_cast<mtl::NormScale>(scale), constant, w, s, workspace, ints);
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mtlkernels, CUDA, m) {
  if (another_backend_is_forced()) return;
  m.impl("task_status", TORCH_BOX(&task_status));
  m.impl("visiting_order", TORCH_BOX(&visiting_order));
  m.impl("pcgrad", TORCH_BOX(&pcgrad));
  m.impl("pcgrad_drawn", TORCH_BOX(&pcgrad_drawn));
  m.impl("cagrad", TORCH_BOX(&cagrad));
  m.impl("avgnorm", TORCH_BOX(&avgnorm));
}

}  // namespace mtlkernels::ops_cuda
