// What the kernels use of CUDA, and how they are launched. Without nvcc, tests/csrc/cuda_on_cpu replaces CUDA's headers.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)

#include <cuda_runtime.h>

#include "../common/launches.h"

namespace mtlkernels::cuda {

constexpr int kWarp = 32;
constexpr int kWarps = 4;   // a block
constexpr int kGroup = 32;  // segments whose partial results are added up together: one a lane

// Few tensors use the small table: less to copy at a launch.
constexpr int kSmallTable = kTableWordsBefore;
#if CUDART_VERSION >= 12010
constexpr int kLargeTable = kTableWords;
#else
constexpr int kLargeTable = kSmallTable;
#endif

using Stream = cudaStream_t;

// Words of the largest table that a launch takes here. The driver has to know parameters of that size as well: version 530
// and later do, which CUDA 12.1 came with.
inline int64_t largest_table() {
  static const bool wide = [] {
    int version = 0;
    return cudaDriverGetVersion(&version) == cudaSuccess && version >= 12010;
  }();
  return wide ? kLargeTable : kSmallTable;
}

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, int threads, Stream stream, const Arguments&... arguments) {
  kernel<<<grid, threads, 0, stream>>>(arguments...);
}

__device__ inline float float_of_half(uint16_t bits) {
  float x;
  asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
  return x;
}

__device__ inline uint16_t half_of_float(float x) {
  uint16_t bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
  return bits;
}

}  // namespace mtlkernels::cuda

#else
#include "cuda_on_cpu.h"
#endif

namespace mtlkernels::cuda {

constexpr int kThreads = kWarp * kWarps;

__device__ inline int lane_of_thread() { return static_cast<int>(threadIdx.x) % kWarp; }
__device__ inline int warp_of_thread() { return static_cast<int>(threadIdx.x) / kWarp; }

// The sum over a warp, by every lane alike: a tree of a fixed shape.
template <class A>
__device__ A warp_sum(A x) {
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
  return x;
}

}  // namespace mtlkernels::cuda
