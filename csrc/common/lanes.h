// What lets one source solve a problem on the host and on a GPU.
//
// A solver is a function template over `Lanes`: `lane` and `lanes` say which share of a loop is ours, `sync()` makes what
// the others wrote visible, `any(x)` says whether x is true in some lane. On the host that is one lane; on a GPU it is a
// warp. Sums are taken by every lane alike, in the order of the index, so all lanes branch alike and both machines round
// alike.
#pragma once

#include <cmath>
#include <cstdint>

#if defined(__CUDACC__)
#define MTLKERNELS_HOST_DEVICE __host__ __device__
#else
#define MTLKERNELS_HOST_DEVICE
#endif

namespace mtlkernels {

constexpr int kMaxTasks = 64;

struct HostLane {
  static constexpr int lane = 0;
  static constexpr int lanes = 1;
  void sync() const {}
  bool any(bool x) const { return x; }
};

}  // namespace mtlkernels
