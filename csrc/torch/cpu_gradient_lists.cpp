// Registration of the CPU kernels over gradient lists: unpack tensors, check, call. Schemas are defined in
// mtlkernels/ops/gradient_lists.py.
#include <vector>

#include "../cpu/combine.h"
#include "../cpu/elementwise.h"
#include "../cpu/gram.h"
#include "../cpu/track.h"
#include "gradient_list.h"
#include "parallel.h"

namespace mtlkernels::ops {
namespace {

namespace mtl = mtlkernels;

Tensor gram(std::vector<Tensor> grads, int64_t num_tasks) {
  const GradientList list(grads, num_tasks);
  const int64_t shape[] = {num_tasks, num_tasks};
  Tensor K = torch::stable::new_empty(grads[0], {shape, 2}, ScalarType::Double);
  mtl::cpu::gram(list.gram_plan(), list.rows, num_tasks, list.dtype, static_cast<double*>(K.mutable_data_ptr()),
                 kParallelFor);
  return K;
}

// Weights as float64 in contiguous memory, whatever their own dtype is.
std::vector<double> read_weights(const Tensor& weights, const Tensor& grad) {
  const int64_t tasks = checked_weights(weights, grad);
  std::vector<double> values(tasks);
  const int64_t stride = weights.stride(0);
  if (weights.scalar_type() == ScalarType::Double) {
    const auto* data = static_cast<const double*>(weights.const_data_ptr());
    for (int64_t t = 0; t < tasks; ++t) values[t] = data[t * stride];
  } else {
    const auto* data = static_cast<const float*>(weights.const_data_ptr());
    for (int64_t t = 0; t < tasks; ++t) values[t] = data[t * stride];
  }
  return values;
}

Tensor combine(std::vector<Tensor> grads, Tensor weights) {
  check_not_empty(grads);
  const std::vector<double> values = read_weights(weights, grads[0]);
  const auto tasks = static_cast<int64_t>(values.size());
  const GradientList list(grads, tasks);
  const mtl::Plan plan = list.row_plan();
  const int64_t length = plan.flat_length();
  Tensor out = torch::stable::new_empty(grads[0], {&length, 1});
  mtl::cpu::combine(plan, list.rows, values.data(), tasks, list.dtype, out.mutable_data_ptr(), list.dtype, 0.0, true,
                    kParallelFor);
  return out;
}

void combine_out(std::vector<Tensor> grads, Tensor weights, Tensor out, double beta) {
  check_not_empty(grads);
  const std::vector<double> values = read_weights(weights, grads[0]);
  const auto tasks = static_cast<int64_t>(values.size());
  const GradientList list(grads, tasks);
  const mtl::Plan plan = list.row_plan();
  const DType out_dtype = checked_out(out, grads[0], list.dtype, plan.flat_length());
  mtl::cpu::combine(plan, list.rows, values.data(), tasks, list.dtype, out.mutable_data_ptr(), out_dtype, beta, false,
                    kParallelFor);
}

Tensor graddrop(std::vector<Tensor> grads, int64_t num_tasks, Tensor seed, Tensor step, Tensor leak) {
  const GradientList list(grads, num_tasks);
  const double* leaks = task_vector(leak, "leak", num_tasks, grads[0], "the gradient");
  const mtl::Plan plan = list.row_plan();
  Tensor out = flat_direction(grads[0], plan);
  mtl::cpu::graddrop(plan, list.rows, std::vector<double>(leaks, leaks + num_tasks), list.dtype,
                     *word_pointer(seed, grads[0]), *word_pointer(step, grads[0]), out.mutable_data_ptr(), kParallelFor);
  return out;
}

Tensor trimmed_mean(std::vector<Tensor> grads, int64_t num_tasks, int64_t trim) {
  const GradientList list(grads, num_tasks);
  check_trim(trim, num_tasks);
  const mtl::Plan plan = list.row_plan();
  Tensor out = flat_direction(grads[0], plan);
  mtl::cpu::trimmed_mean(plan, list.rows, num_tasks, list.dtype, trim, out.mutable_data_ptr(), kParallelFor);
  return out;
}

Tensor track_gram(std::vector<Tensor> grads, int64_t num_tasks, Tensor scale, Tensor rate, Tensor state) {
  const GradientList list(grads, num_tasks);
  const double* factors = task_vector(scale, "scale", num_tasks, grads[0], "the gradient");
  const double* share = rate_pointer(rate, grads[0]);
  const mtl::Plan plan = list.gram_plan();
  void* rows = state_rows(state, list, grads[0], plan);
  const int64_t shape[] = {num_tasks, num_tasks};
  Tensor K = torch::stable::new_empty(grads[0], {shape, 2}, ScalarType::Double);
  mtl::cpu::track_gram(plan, list.rows, std::vector<double>(factors, factors + num_tasks), *share, list.dtype, rows,
                       static_cast<double*>(K.mutable_data_ptr()), kParallelFor);
  return K;
}

Tensor excess(std::vector<Tensor> grads, int64_t num_tasks, double eps, Tensor state) {
  const GradientList list(grads, num_tasks);
  const mtl::Plan plan = list.row_plan();
  void* rows = state_rows(state, list, grads[0], plan);
  Tensor e = torch::stable::new_empty(grads[0], {&num_tasks, 1}, ScalarType::Double);
  mtl::cpu::excess(plan, list.rows, num_tasks, eps, list.dtype, rows, static_cast<double*>(e.mutable_data_ptr()),
                   kParallelFor);
  return e;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mtlkernels, CPU, m) {
  if (another_backend_is_forced()) return;
  m.impl("gram", TORCH_BOX(&gram));
  m.impl("combine", TORCH_BOX(&combine));
  m.impl("combine_out", TORCH_BOX(&combine_out));
  m.impl("graddrop", TORCH_BOX(&graddrop));
  m.impl("trimmed_mean", TORCH_BOX(&trimmed_mean));
  m.impl("track_gram", TORCH_BOX(&track_gram));
  m.impl("excess", TORCH_BOX(&excess));
}

}  // namespace mtlkernels::ops
