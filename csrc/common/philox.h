// Philox4x32-10 (Salmon et al., SC 2011): four random words from a counter of 128 bits and a key of 64, no state.
// One source for host and device; mtlkernels/reference/philox.py is the same in plain torch.
#pragma once

#include <cstdint>

#include "lanes.h"

namespace mtlkernels {

struct Philox {
  uint32_t word[4];
};

// The words of elements 4 * group .. 4 * group + 3 of one step's draws.
#if defined(__GNUC__) && !defined(__CUDACC__)
__attribute__((always_inline))  // or the loop over groups would not become vector code
#endif
MTLKERNELS_HOST_DEVICE inline Philox philox(uint64_t group, uint64_t step, uint64_t seed) {
  uint32_t c0 = static_cast<uint32_t>(group), c1 = static_cast<uint32_t>(group >> 32);
  uint32_t c2 = static_cast<uint32_t>(step), c3 = static_cast<uint32_t>(step >> 32);
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
#if defined(__CUDA_ARCH__)
#pragma unroll
#elif defined(__GNUC__) && !defined(__CUDACC__)
#pragma GCC unroll 10
#endif
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53u} * c0, b = uint64_t{0xCD9E8D57u} * c2;
    c0 = static_cast<uint32_t>(b >> 32) ^ c1 ^ k0;
    c2 = static_cast<uint32_t>(a >> 32) ^ c3 ^ k1;
    c1 = static_cast<uint32_t>(b);
    c3 = static_cast<uint32_t>(a);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

// 24 bits of a word as a number in (-1, 1), an odd multiple of 2^-24: exact in float32, symmetric, never 0.
MTLKERNELS_HOST_DEVICE inline float philox_threshold(uint32_t word) {
  return static_cast<float>(static_cast<int32_t>(2 * (word >> 8) + 1) - (1 << 24)) * 0x1p-24f;
}

}  // namespace mtlkernels
