// What the registration of every solver on CUDA needs: arguments checked, the outputs, the memory, the launch.
#pragma once

#include <tuple>

#include "../cuda/lanes.cuh"
#include "device.cuh"

namespace mtlkernels::ops_cuda {

// K checked, and the outputs and memory of one solver call, from torch's allocator.
struct Problem {
  int tasks;
  Tensor K, weights, status, workspace, ints;
  OnDevice device;

  Problem(const Tensor& gram, int64_t doubles(int64_t), int64_t int_count(int64_t))
      : tasks(checked_tasks(gram)), K(torch::stable::contiguous(gram)), weights(vector(ScalarType::Double, tasks)),
        status(vector(ScalarType::Long, tasks)), workspace(vector(ScalarType::Double, doubles(tasks))),
        ints(vector(ScalarType::Int, int_count(tasks))), device(K) {}

  Tensor vector(ScalarType type, int64_t n) const { return torch::stable::new_empty(K, {&n, 1}, type); }
  // `weights` and `status` are written by every solver; the pointers go into its closure by value.
  const double* k() const { return static_cast<const double*>(K.const_data_ptr()); }
  double* w() { return static_cast<double*>(weights.mutable_data_ptr()); }
  int64_t* s() { return static_cast<int64_t*>(status.mutable_data_ptr()); }
  double* d() { return static_cast<double*>(workspace.mutable_data_ptr()); }
  int* i() { return static_cast<int*>(ints.mutable_data_ptr()); }

  // solve: called with the lanes on the device.
  template <class Solve>
  std::tuple<Tensor, Tensor> run(const char* op, const Solve& solve) {
    cuda::launch_solver(device.stream(), solve);
    device.check_launches(op);
    return {weights, status};
  }
};

}  // namespace mtlkernels::ops_cuda
