// The solvers' lanes on a GPU: one warp, one block. Their headers are the CPU's own.
//
// Device code is compiled without contraction of a * b + c, so additions, products, quotients and roots round as on the
// CPU; exp, log, pow and cos come from CUDA's library and may differ in the last places.
#pragma once

#include "device.cuh"

namespace mtlkernels::cuda {

struct Warp {
  static constexpr int lanes = kWarp;
  int lane;

  __device__ void sync() const { __syncwarp(); }
  __device__ bool any(bool x) const { return __any_sync(0xffffffffu, x); }
};

template <class S, class... Arguments>
__global__ void __launch_bounds__(kWarp) solve_kernel(Arguments... arguments) {
  S::solve(Warp{lane_of_thread()}, arguments...);
}

// S: a class with a static template `solve` (common/solver.h).
template <class S, class... Arguments>
void launch_solver(Stream stream, const Arguments&... arguments) {
  launch(solve_kernel<S, Arguments...>, dim3(1), kWarp, stream, arguments...);
}

}  // namespace mtlkernels::cuda
