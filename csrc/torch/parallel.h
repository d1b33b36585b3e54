// The kernels' parallel loop, by torch's own thread pool.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <cstdint>

namespace mtlkernels::ops {

inline constexpr auto kParallelFor = [](int64_t end, int64_t grain, const auto& body) {
  torch::stable::parallel_for(0, end, grain, body);
};

}  // namespace mtlkernels::ops
