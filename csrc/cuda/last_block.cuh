// Which block of a grid ends last: it finds the others' results in memory, so that adding them up takes no launch of its
// own. Integers are counted, in any order; what is added up, and in which order, does not depend on it.
#pragma once

#include "device.cuh"

namespace mtlkernels::cuda {

// Counters of blocks that have ended, zero between launches: the last block leaves zero. Part of the library's image, so
// no launch or copy has to clear them. A launch may use those that no other launch at the same time does.
constexpr int kTickets = 1 << 17;
static __device__ unsigned tickets[kTickets];

// Whether this block is the last of `count` to come here: then its threads see what all of them wrote before.
__device__ inline bool is_last_block(unsigned* ended, unsigned count) {
  __shared__ bool last;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) last = atomicInc(ended, count - 1) == count - 1;
  __syncthreads();
  if (last) __threadfence();
  return last;
}

}  // namespace mtlkernels::cuda
