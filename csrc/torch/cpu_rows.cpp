// Registration of the CPU kernels of the row methods: element-wise directions, and states as long as the gradients.
// Schemas are defined in mtlkernels/ops/rows.py.
#include <vector>

#include "../cpu/elementwise.h"
#include "../cpu/track.h"
#include "gradient_list.h"
#include "../common/plan.h"
#include "parallel.h"
#include "host.h"

namespace mtlkernels::ops_cpu {
namespace {

namespace mtl = mtlkernels;

Tensor graddrop(std::vector<Tensor> grads, int64_t num_tasks, Tensor seed, Tensor step, Tensor leak) {
  const GradientList list(grads, num_tasks);
  const double* leaks = task_vector(leak, "leak", num_tasks, grads[0], "the gradient");
  const mtl::Plan plan = list.plan();
  Tensor out = flat_direction(grads[0], plan);
  mtl::cpu::graddrop(plan, list.rows, std::vector<double>(leaks, leaks + num_tasks), list.dtype, read_word(seed, grads[0]),
                     read_word(step, grads[0]), out.mutable_data_ptr(), kParallelFor);
  return out;
}

Tensor trimmed_mean(std::vector<Tensor> grads, int64_t num_tasks, int64_t trim) {
  const GradientList list(grads, num_tasks);
  check_trim(trim, num_tasks);
  const mtl::Plan plan = list.plan();
  Tensor out = flat_direction(grads[0], plan);
  mtl::cpu::trimmed_mean(plan, list.rows, num_tasks, list.dtype, trim, out.mutable_data_ptr(), kParallelFor);
  return out;
}

void* state_rows(const Tensor& state, int64_t tasks, const mtl::Plan& plan, mtl::DType dtype) {
  const auto wide = mtl::cpu::accumulator(dtype) == mtl::DType::kFloat64 ? ScalarType::Double : ScalarType::Float;
  check(state.is_cpu() && state.scalar_type() == wide && state.dim() == 2 && state.size(0) == tasks &&
            state.size(1) == plan.flat_length() && state.is_contiguous(),
        "state must be a contiguous matrix of ", tasks, " x ", plan.flat_length(), " numbers, a row a task as combine lays "
        "it out, in float64 for float64 gradients and else in float32, on the gradients' device");
  return state.mutable_data_ptr();
}

Tensor track_gram(std::vector<Tensor> grads, int64_t num_tasks, Tensor scale, Tensor rate, Tensor state) {
  const GradientList list(grads, num_tasks);
  const double* factors = task_vector(scale, "scale", num_tasks, grads[0], "the gradient");
  check(rate.is_cpu() && rate.scalar_type() == ScalarType::Double && rate.numel() == 1, "rate must be a float64 scalar");
  const mtl::Plan plan = list.plan();
  void* rows = state_rows(state, num_tasks, plan, list.dtype);
  const int64_t shape[] = {num_tasks, num_tasks};
  Tensor K = torch::stable::new_empty(grads[0], {shape, 2}, ScalarType::Double);
  mtl::cpu::track_gram(plan, list.rows, std::vector<double>(factors, factors + num_tasks),
                       *static_cast<const double*>(rate.const_data_ptr()), list.dtype, rows,
                       static_cast<double*>(K.mutable_data_ptr()), kParallelFor);
  return K;
}

Tensor excess(std::vector<Tensor> grads, int64_t num_tasks, double eps, Tensor state) {
  const GradientList list(grads, num_tasks);
  const mtl::Plan plan = list.plan();
  void* rows = state_rows(state, num_tasks, plan, list.dtype);
  Tensor e = torch::stable::new_empty(grads[0], {&num_tasks, 1}, ScalarType::Double);
  mtl::cpu::excess(plan, list.rows, num_tasks, eps, list.dtype, rows, static_cast<double*>(e.mutable_data_ptr()),
                   kParallelFor);
  return e;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mtlkernels, CPU, m) {
  if (another_backend_is_forced()) return;
  m.impl("graddrop", TORCH_BOX(&graddrop));
  m.impl("trimmed_mean", TORCH_BOX(&trimmed_mean));
  m.impl("track_gram", TORCH_BOX(&track_gram));
  m.impl("excess", TORCH_BOX(&excess));
}

}  // namespace mtlkernels::ops_cpu
