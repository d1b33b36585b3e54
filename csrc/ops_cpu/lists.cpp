// Registration of the CPU kernels over gradient lists: unpack tensors, check, call. Schemas are defined in
// mtlkernels/ops/lists.py.
#include <vector>

#include "../cpu/combine.h"
#include "../cpu/gram.h"
#include "../plan.h"
#include "gradient_list.h"

namespace mtlkernels::ops_cpu {
namespace {

namespace mtl = mtlkernels;

Tensor gram(std::vector<Tensor> grads, int64_t num_tasks) {
  const GradientList list(grads, num_tasks);
  const int64_t shape[] = {num_tasks, num_tasks};
  Tensor K = torch::stable::new_empty(grads[0], {shape, 2}, ScalarType::Double);
  mtl::cpu::gram(list.plan(), list.rows, num_tasks, list.dtype, static_cast<double*>(K.mutable_data_ptr()), kParallelFor);
  return K;
}

Tensor combine(std::vector<Tensor> grads, Tensor weights) {
  int64_t tasks = 0;
  const std::vector<double> values = read_numbers(weights, "weights", tasks);
  const GradientList list(grads, tasks);
  const mtl::Plan plan = list.plan();
  const int64_t length = plan.flat_length();
  Tensor out = torch::stable::new_empty(grads[0], {&length, 1});
  mtl::cpu::combine(plan, list.rows, values.data(), tasks, list.dtype, out.mutable_data_ptr(), 0.0, true, kParallelFor);
  return out;
}

void combine_out(std::vector<Tensor> grads, Tensor weights, Tensor out, double beta) {
  int64_t tasks = 0;
  const std::vector<double> values = read_numbers(weights, "weights", tasks);
  const GradientList list(grads, tasks);
  const mtl::Plan plan = list.plan();
  check(out.is_cpu() && out.scalar_type() == grads[0].scalar_type(), "out must have the gradients' dtype and device");
  check(out.dim() == 1 && out.numel() == plan.flat_length() && out.is_contiguous(),
                  "out must be a contiguous vector of ", plan.flat_length(), " elements, as combine returns it");
  mtl::cpu::combine(plan, list.rows, values.data(), tasks, list.dtype, out.mutable_data_ptr(), beta, false, kParallelFor);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mtlkernels, CPU, m) {
  if (another_backend_is_forced()) return;
  m.impl("gram", TORCH_BOX(&gram));
  m.impl("combine", TORCH_BOX(&combine));
  m.impl("combine_out", TORCH_BOX(&combine_out));
}

}  // namespace mtlkernels::ops_cpu
