// The solvers' lanes on a GPU: one warp, one block. Their headers are the CPU's own.
//
// Device code is compiled without contraction of a * b + c, so additions, products, quotients and roots round as on the
// CPU; exp, log, pow and cos come from CUDA's library and may differ in the last places.
#pragma once

#include "../linalg/screen.h"
#include "device.cuh"

namespace mtlkernels::cuda {

struct Warp {
  static constexpr int lanes = kWarp;
  int lane;

  __device__ void sync() const { __syncwarp(); }
};

// solve: a callable on the device that takes the lanes.
template <class Solve>
__global__ void __launch_bounds__(kWarp) solve_kernel(const Solve solve) {
  solve(Warp{lane_of_thread()});
}

template <class Solve>
void launch_solver(Stream stream, const Solve& solve) {
  launch(solve_kernel<Solve>, dim3(1), kWarp, stream, solve);
}

// Whether every entry of an order (T, T - 1) names a task: it is data, so the host cannot say. By every lane alike.
__device__ inline bool names_tasks(const Warp& lanes, const int64_t* order, int tasks) {
  bool valid = true;
  for (int i = lanes.lane; i < tasks * (tasks - 1); i += Warp::lanes) valid = valid && order[i] >= 0 && order[i] < tasks;
  return !__any_sync(0xffffffffu, !valid);
}

}  // namespace mtlkernels::cuda
