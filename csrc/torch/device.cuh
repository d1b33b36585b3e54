// What every registration on CUDA needs of torch: the device, its current stream, and a launch's failure as a sentence.
#pragma once

#include <torch/csrc/stable/accelerator.h>

#include <dlfcn.h>

#include <cstdint>

#include "../cuda/device.cuh"
#include "arguments.h"

namespace mtlkernels::ops {

// torch's shim for the current stream lives in its CUDA library, which a build against a CPU-only torch cannot link to
// and which torch does not make visible: it is looked up in the library that the process has loaded.
inline cuda::Stream current_stream(int32_t device) {
  using Function = int32_t (*)(int32_t, void**);
  static const auto get = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_NOLOAD | RTLD_NOW);
    return library ? reinterpret_cast<Function>(dlsym(library, "aoti_torch_get_current_cuda_stream")) : nullptr;
  }();
  check(get != nullptr, "the CUDA kernels need a torch with CUDA: its libtorch_cuda.so is not loaded in this process");
  void* stream = nullptr;
  check(get(device, &stream) == 0, "torch has no current CUDA stream on device ", device);
  return static_cast<cuda::Stream>(stream);
}

// Selects a tensor's device for its scope and knows its current stream.
class OnDevice {
 public:
  explicit OnDevice(const Tensor& tensor)
      : index_(tensor.get_device_index()), guard_(index_), stream_(current_stream(index_)) {}
  int32_t index() const { return index_; }
  cuda::Stream stream() const { return stream_; }
  void check_launches(const char* op) const {
    const cudaError_t error = cudaGetLastError();
    check(error == cudaSuccess, op, " could not be launched on the GPU: ", cudaGetErrorString(error));
  }

 private:
  int32_t index_;
  torch::stable::accelerator::DeviceGuard guard_;
  cuda::Stream stream_;
};

}  // namespace mtlkernels::ops
