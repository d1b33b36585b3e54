// Registration of the CUDA kernels over gradient lists, and of those of states as long as the gradients, which have a Gram
// matrix too: unpack tensors, check, call. Schemas are defined in mtlkernels/ops/gradient_lists.py.
#include "../cuda/combine.cuh"
#include "../cuda/gram.cuh"
#include "../cuda/state.cuh"
#include "lists.cuh"
#include "tickets.cuh"

namespace mtlkernels::ops {
namespace {

Tensor gram(std::vector<Tensor> grads, int64_t num_tasks) {
  const GradientList list(grads, num_tasks);
  check_tasks(num_tasks);
  const OnDevice device(grads[0]);
  const Plan plan = list.gram_plan();
  const int64_t shape[] = {num_tasks, num_tasks}, doubles = cuda::gram_workspace(plan, num_tasks);
  Tensor K = torch::stable::new_empty(grads[0], {shape, 2}, ScalarType::Double);
  Tensor workspace = torch::stable::new_empty(grads[0], {&doubles, 1}, ScalarType::Double);
  const int ticket = tickets().first(device, cuda::gram_tickets(plan, num_tasks));
  with_element(list.dtype, [&]<class S>(S) {
    cuda::gram<S>(plan, list.rows, num_tasks, static_cast<double*>(K.mutable_data_ptr()),
                  static_cast<double*>(workspace.mutable_data_ptr()), ticket, device.stream());
  });
  device.check_launches("gram");
  return K;
}

// out_dtype: the list's, or float32 for gradients of 16 bits.
void combine_into(const Plan& plan, const GradientList& list, const Tensor& weights, Tensor& out, DType out_dtype,
                  double beta, const OnDevice& device) {
  check_tasks(list.tasks);
  const cuda::WeightVector vector{weights.const_data_ptr(), weights.stride(0), weights.scalar_type() == ScalarType::Double};
  with_element(list.dtype, [&]<class S>(S) {
    if constexpr (sizeof(S) == 2)
      if (out_dtype == DType::kFloat32)
        return cuda::combine<S, float>(plan, list.rows, list.tasks, vector, out.mutable_data_ptr(), beta, device.stream());
    cuda::combine<S, S>(plan, list.rows, list.tasks, vector, out.mutable_data_ptr(), beta, device.stream());
  });
  device.check_launches("combine");
}

Tensor combine(std::vector<Tensor> grads, Tensor weights) {
  check_not_empty(grads);
  const GradientList list(grads, checked_weights(weights, grads[0]));
  const OnDevice device(grads[0]);
  const Plan plan = list.row_plan();
  const int64_t length = plan.flat_length();
  Tensor out = torch::stable::new_empty(grads[0], {&length, 1});
  combine_into(plan, list, weights, out, list.dtype, 0.0, device);
  return out;
}

void combine_out(std::vector<Tensor> grads, Tensor weights, Tensor out, double beta) {
  check_not_empty(grads);
  const GradientList list(grads, checked_weights(weights, grads[0]));
  const OnDevice device(grads[0]);
  const Plan plan = list.row_plan();
  const DType out_dtype = checked_out(out, grads[0], list.dtype, plan.flat_length());
  combine_into(plan, list, weights, out, out_dtype, beta, device);
}

Tensor track_gram(std::vector<Tensor> grads, int64_t num_tasks, Tensor scale, Tensor rate, Tensor state) {
  const GradientList list(grads, num_tasks);
  check_tasks(num_tasks);
  const double* factors = task_vector(scale, "scale", num_tasks, grads[0], "the gradient");
  const double* share = rate_pointer(rate, grads[0]);
  const OnDevice device(grads[0]);
  const Plan plan = list.row_plan(), gram_plan = list.gram_plan();
  void* rows = state_rows(state, list, grads[0], plan);
  const int64_t shape[] = {num_tasks, num_tasks}, doubles = cuda::gram_workspace(gram_plan, num_tasks);
  const int64_t ints = cuda::measures(plan, num_tasks);
  Tensor K = torch::stable::new_empty(grads[0], {shape, 2}, ScalarType::Double);
  Tensor workspace = torch::stable::new_empty(grads[0], {&doubles, 1}, ScalarType::Double);
  Tensor spoilt = torch::stable::new_empty(grads[0], {&ints, 1}, ScalarType::Int);
  const int ticket = tickets().first(device, cuda::gram_tickets(gram_plan, num_tasks));
  with_element(list.dtype, [&]<class S>(S) {
    cuda::track_gram<S>(plan, gram_plan, list.rows, num_tasks, factors, share, rows,
                        static_cast<double*>(K.mutable_data_ptr()), static_cast<int*>(spoilt.mutable_data_ptr()),
                        static_cast<double*>(workspace.mutable_data_ptr()), ticket, device.stream());
  });
  device.check_launches("track_gram");
  return K;
}

Tensor excess(std::vector<Tensor> grads, int64_t num_tasks, double eps, Tensor state) {
  const GradientList list(grads, num_tasks);
  check_tasks(num_tasks);
  const OnDevice device(grads[0]);
  const Plan plan = list.row_plan();
  void* rows = state_rows(state, list, grads[0], plan);
  const int64_t doubles = cuda::measures(plan, num_tasks);
  Tensor e = torch::stable::new_empty(grads[0], {&num_tasks, 1}, ScalarType::Double);
  Tensor sums = torch::stable::new_empty(grads[0], {&doubles, 1}, ScalarType::Double);
  with_element(list.dtype, [&]<class S>(S) {
    cuda::excess<S>(plan, list.rows, num_tasks, eps, rows, static_cast<double*>(e.mutable_data_ptr()),
                    static_cast<double*>(sums.mutable_data_ptr()), device.stream());
  });
  device.check_launches("excess");
  return e;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mtlkernels, CUDA, m) {
  if (another_backend_is_forced()) return;
  m.impl("gram", TORCH_BOX(&gram));
  m.impl("combine", TORCH_BOX(&combine));
  m.impl("combine_out", TORCH_BOX(&combine_out));
  m.impl("track_gram", TORCH_BOX(&track_gram));
  m.impl("excess", TORCH_BOX(&excess));
}

}  // namespace mtlkernels::ops
