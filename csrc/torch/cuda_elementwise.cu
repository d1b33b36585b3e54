// Registration of the CUDA kernels of GradDrop and the trimmed mean. Schemas are defined in
// mtlkernels/ops/gradient_lists.py.
#include "../cuda/graddrop.cuh"
#include "../cuda/trimmed.cuh"
#include "lists.cuh"

namespace mtlkernels::ops {
namespace {

Tensor graddrop(std::vector<Tensor> grads, int64_t num_tasks, Tensor seed, Tensor step, Tensor leak) {
  const GradientList list(grads, num_tasks);
  check_tasks(num_tasks);
  const cuda::Drawing drawing{word_pointer(seed, grads[0]), word_pointer(step, grads[0]),
                              task_vector(leak, "leak", num_tasks, grads[0], "the gradient")};
  const OnDevice device(grads[0]);
  const Plan plan = list.row_plan();
  Tensor out = flat_direction(grads[0], plan);
  with_element(list.dtype, [&]<class S>(S) {
    cuda::graddrop<S>(plan, list.rows, num_tasks, drawing, out.mutable_data_ptr(), device.stream());
  });
  device.check_launches("graddrop");
  return out;
}

Tensor trimmed_mean(std::vector<Tensor> grads, int64_t num_tasks, int64_t trim) {
  const GradientList list(grads, num_tasks);
  check_tasks(num_tasks);
  check_trim(trim, num_tasks);
  const OnDevice device(grads[0]);
  const Plan plan = list.row_plan();
  Tensor out = flat_direction(grads[0], plan);
  with_element(list.dtype, [&]<class S>(S) {
    cuda::trimmed_mean<S>(plan, list.rows, num_tasks, trim, out.mutable_data_ptr(), device.stream());
  });
  device.check_launches("trimmed_mean");
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mtlkernels, CUDA, m) {
  if (another_backend_is_forced()) return;
  m.impl("graddrop", TORCH_BOX(&graddrop));
  m.impl("trimmed_mean", TORCH_BOX(&trimmed_mean));
}

}  // namespace mtlkernels::ops
