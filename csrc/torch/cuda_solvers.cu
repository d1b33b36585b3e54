// Registration of the solvers on CUDA. Schemas are defined in mtlkernels/ops/solvers.py.
#include "../cuda/lanes.cuh"
#include "device.cuh"
#include "solvers.h"

namespace mtlkernels::ops {
namespace {

// A device of solvers.h: one warp, and memory from torch's allocator.
struct Cuda {
  using Lanes = cuda::Warp;
  static constexpr bool kReadsNumbers = false;

  template <class X>
  class Memory {
   public:
    Memory(const Tensor& like, int64_t n)
        : tensor_(torch::stable::new_empty(like, {&n, 1}, sizeof(X) == 8 ? ScalarType::Double : ScalarType::Int)) {}
    X* data() { return static_cast<X*>(tensor_.mutable_data_ptr()); }

   private:
    Tensor tensor_;
  };

  explicit Cuda(const Tensor& tensor) : device(tensor) {}
  template <class S, class... Arguments>
  void run(const char* op, const Arguments&... arguments) const {
    cuda::launch_solver<S>(device.stream(), arguments...);
    device.check_launches(op);
  }

  OnDevice device;
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mtlkernels, CUDA, m) { register_solvers<Cuda>(m); }

}  // namespace mtlkernels::ops
