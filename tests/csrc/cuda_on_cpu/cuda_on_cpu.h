// The part of CUDA that the kernels use, on a CPU, so that the same sources run under sanitizers: a block is a group of
// threads, one a CUDA thread, with barriers for its synchronisation; the blocks of a grid run one after another.
// Warps are short and tables small here: few elements then reach every path. With BLOCKS_AT_ONCE a block is one thread and
// all blocks of a grid run at the same time: what blocks tell each other is then in the sanitizer's sight.
#pragma once

#include <pthread.h>

#include <atomic>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <thread>
#include <type_traits>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __noinline__ __attribute__((noinline))
#if defined(BLOCKS_AT_ONCE)
#define __shared__ static thread_local
#else
#define __shared__ static  // blocks run in turn
#endif
#define __grid_constant__
#define __launch_bounds__(...)

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};

struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

inline thread_local dim3 threadIdx, blockIdx;
inline dim3 gridDim, blockDim;

namespace mtlkernels::cuda {

#if defined(BLOCKS_AT_ONCE)
constexpr int kWarp = 1;
constexpr int kWarps = 1;
#else
constexpr int kWarp = 4;
constexpr int kWarps = 2;
#endif
constexpr int kGroup = 4;
constexpr int kSmallTable = 100;  // words
constexpr int kLargeTable = 200;
inline bool new_driver = true;
inline std::vector<unsigned> blocks_launched;  // of each launch
inline int64_t largest_table() { return new_driver ? kLargeTable : kSmallTable; }

using Stream = void*;

// Waits for a fixed number of threads, again and again.
class Barrier {
 public:
  explicit Barrier(int count) { pthread_barrier_init(&barrier_, nullptr, static_cast<unsigned>(count)); }
  ~Barrier() { pthread_barrier_destroy(&barrier_); }
  Barrier(const Barrier&) = delete;
  Barrier& operator=(const Barrier&) = delete;
  void wait() { pthread_barrier_wait(&barrier_); }

 private:
  pthread_barrier_t barrier_;
};

struct Block {
  explicit Block(int threads) : all(threads) {
    for (int w = 0; w < kWarps; ++w) warp.push_back(std::make_unique<Barrier>(kWarp));
  }
  Barrier all;
  std::vector<std::unique_ptr<Barrier>> warp;
  double slot[kWarps * kWarp] = {};  // what a shuffle exchanges
};
inline thread_local Block* block = nullptr;

inline void warp_wait() { block->warp[threadIdx.x / kWarp]->wait(); }

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, int threads, Stream, const Arguments&... arguments) {
  if (grid.x == 0 || grid.y == 0 || threads % kWarp || threads > kWarp * kWarps) {
    std::fprintf(stderr, "a launch of %u x %u blocks of %d threads is not valid\n", grid.x, grid.y, threads);
    std::abort();
  }
  gridDim = grid;
  blocks_launched.push_back(grid.x);
  blockDim = dim3(static_cast<unsigned>(threads));
  std::vector<std::thread> running;
#if defined(BLOCKS_AT_ONCE)
  for (unsigned b = 0; b < grid.x * grid.y; ++b) {
    running.emplace_back([&, b] {
      Block group(1);
      block = &group;
      threadIdx = dim3(0, 0, 0);
      blockIdx = dim3(b % grid.x, b / grid.x, 0);
      kernel(arguments...);
    });
  }
#else
  Block group(threads);
  for (int t = 0; t < threads; ++t) {
    running.emplace_back([&, t] {
      block = &group;
      threadIdx = dim3(static_cast<unsigned>(t), 0, 0);
      for (unsigned y = 0; y < grid.y; ++y) {
        for (unsigned x = 0; x < grid.x; ++x) {
          blockIdx = dim3(x, y, 0);
          kernel(arguments...);
          group.all.wait();
        }
      }
    });
  }
#endif
  for (std::thread& thread : running) thread.join();
}

inline float float_of_half(uint16_t bits) {
  const uint32_t magnitude = static_cast<uint32_t>(bits & 0x7fffu) << 13;
  float scaled;
  std::memcpy(&scaled, &magnitude, 4);
  scaled *= 0x1p112f;
  uint32_t u;
  std::memcpy(&u, &scaled, 4);
  u |= (bits & 0x7c00u) == 0x7c00u ? 0x7f800000u : 0u;
  u |= static_cast<uint32_t>(bits & 0x8000u) << 16;
  float x;
  std::memcpy(&x, &u, 4);
  return x;
}

// To nearest, ties to even, by arithmetic: the quantum of half precision at x's size divides the answer.
inline uint16_t half_of_float(float x) {
  const uint16_t sign = std::signbit(x) ? 0x8000u : 0u;
  if (std::isnan(x)) return sign | 0x7e00u;
  const double size = std::fabs(static_cast<double>(x));
  if (size >= 65520.0) return sign | 0x7c00u;
  int exponent = size > 0 ? std::ilogb(size) : -14;
  exponent = exponent < -14 ? -14 : exponent;
  const auto units = static_cast<uint32_t>(std::nearbyint(std::ldexp(size, 10 - exponent)));    // of 2^(exponent - 10)
  return static_cast<uint16_t>(sign | (static_cast<uint32_t>(exponent + 14) * 1024u + units));  // 1024 units carry over
}

}  // namespace mtlkernels::cuda

template <class T>
T __ldg(const T* p) {
  if (reinterpret_cast<uintptr_t>(p) % alignof(T)) {
    std::fprintf(stderr, "a load of %zu bytes from %p is misaligned\n", sizeof(T), static_cast<const void*>(p));
    std::abort();
  }
  T value;
  std::memcpy(&value, p, sizeof(T));
  return value;
}

template <class T>
T __ldcg(const T* p) {
  return *p;
}

// What a thread has written before a fence is seen after the fence of a thread that comes to its own later.
inline std::atomic<unsigned> fences = 0;
inline void __threadfence() { fences.fetch_add(1, std::memory_order_acq_rel); }

// Orders nothing but itself, as on a GPU.
inline unsigned atomicInc(unsigned* word, unsigned limit) {
  const std::atomic_ref<unsigned> shared(*word);
  unsigned old = shared.load(std::memory_order_relaxed);
  while (!shared.compare_exchange_weak(old, old >= limit ? 0 : old + 1, std::memory_order_relaxed)) {
  }
  return old;
}

inline void __syncthreads() { mtlkernels::cuda::block->all.wait(); }
inline int __syncthreads_or(int predicate) {
  using namespace mtlkernels::cuda;
  block->slot[threadIdx.x] = predicate ? 1.0 : 0.0;
  __syncthreads();
  double found = 0;
  for (unsigned t = 0; t < blockDim.x; ++t) found += block->slot[t];
  __syncthreads();
  return found > 0;
}
inline void __syncwarp() { mtlkernels::cuda::warp_wait(); }

template <class T>
T __shfl_xor_sync(unsigned, T x, int mask) {
  using namespace mtlkernels::cuda;
  block->slot[threadIdx.x] = x;
  warp_wait();
  const T other = static_cast<T>(block->slot[threadIdx.x ^ static_cast<unsigned>(mask)]);
  warp_wait();
  return other;
}

inline int __any_sync(unsigned mask, int predicate) {
  float found = predicate ? 1.0f : 0.0f;
  for (int step = mtlkernels::cuda::kWarp / 2; step > 0; step /= 2) found += __shfl_xor_sync(mask, found, step);
  return found > 0;
}

inline float fma(float a, float b, float c) { return std::fma(a, b, c); }
