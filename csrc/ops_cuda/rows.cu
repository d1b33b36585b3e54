// Registration of the CUDA kernel of GradDrop. Schemas are defined in mtlkernels/ops/rows.py. The
// others of that file, trimmed_mean, track_gram and excess, have none: they are plain torch on CUDA.
#include "../cuda/graddrop.cuh"
#include "lists.cuh"

namespace mtlkernels::ops_cuda {
namespace {

Tensor graddrop(std::vector<Tensor> grads, int64_t num_tasks, Tensor seed, Tensor step, Tensor leak) {
  const GradientList list(grads, num_tasks);
  check_tasks(num_tasks);
  const cuda::Drawing drawing{word_pointer(seed, grads[0]), word_pointer(step, grads[0]),
                              task_vector(leak, "leak", num_tasks, grads[0], "the gradient")};
  const OnDevice device(grads[0]);
  const Plan plan = list.plan();
  Tensor out = flat_direction(grads[0], plan);
  with_element(list.dtype, [&]<class S>(S) {
    cuda::graddrop<S>(plan, list.rows, num_tasks, drawing, out.mutable_data_ptr(), device.stream());
  });
  device.check_launches("graddrop");
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mtlkernels, CUDA, m) {
  if (another_backend_is_forced()) return;
  m.impl("graddrop", TORCH_BOX(&graddrop));
}

}  // namespace mtlkernels::ops_cuda
