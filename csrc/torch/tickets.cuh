// Which counters of cuda/last_block.cuh a launch may use.
#pragma once

#include <map>
#include <mutex>
#include <utility>

#include "../cuda/last_block.cuh"
#include "device.cuh"

namespace mtlkernels::ops {

// Launches of one stream run one after another and share their counters. What a CUDA graph has captured runs beside
// anything, wherever it is replayed: it keeps its own for good.
class Tickets {
 public:
  // The first of `count` counters, or -1 where none is left or CUDA does not tell which stream this is.
  int first(const OnDevice& device, int64_t count) {
    if (count < 1 || count > kOfStream) return -1;
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    unsigned long long stream = 0;  // unlike a handle, never given twice
    if (cudaStreamIsCapturing(device.stream(), &status) != cudaSuccess ||
        (status == cudaStreamCaptureStatusNone && cudaStreamGetId(device.stream(), &stream) != cudaSuccess)) {
      cudaGetLastError();  // it was asked for, and is answered: no launch failed
      return -1;
    }
    const std::lock_guard<std::mutex> lock(mutex_);
    if (status != cudaStreamCaptureStatusNone) return take(device.index(), count);
    const auto [entry, is_new] = streams_.try_emplace({device.index(), stream}, -1);
    if (is_new) entry->second = take(device.index(), kOfStream);
    return entry->second;
  }

 private:
  static constexpr int64_t kOfStream = 512;  // what up to 64 tasks take

  int take(int32_t device, int64_t count) {
    int64_t& taken = taken_[device];
    if (taken + count > cuda::kTickets) return -1;
    taken += count;
    return static_cast<int>(taken - count);
  }

  std::mutex mutex_;
  std::map<std::pair<int32_t, unsigned long long>, int> streams_;
  std::map<int32_t, int64_t> taken_;  // a device's counters are its own
};

inline Tickets& tickets() {
  static Tickets all;
  return all;
}

}  // namespace mtlkernels::ops
