// Elements, the accumulator they are computed in, and 16 bytes of them at a time.
#pragma once

#include "device.cuh"

namespace mtlkernels::cuda {

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

template <class S> struct Accumulator {
  using type = float;
};
template <> struct Accumulator<double> {
  using type = double;
};
template <class S> using accumulator_t = typename Accumulator<S>::type;

template <class To, class From>
__device__ To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof(to));
  return to;
}

__device__ inline float widen(float x) { return x; }
__device__ inline double widen(double x) { return x; }
__device__ inline float widen(BFloat16 x) { return bits_as<float>(static_cast<uint32_t>(x.bits) << 16); }
__device__ inline float widen(Float16 x) { return float_of_half(x.bits); }

__device__ inline float narrow(float x, float) { return x; }
__device__ inline double narrow(double x, double) { return x; }
__device__ inline Float16 narrow(float x, Float16) { return {half_of_float(x)}; }
__device__ inline BFloat16 narrow(float x, BFloat16) {
  const uint32_t u = bits_as<uint32_t>(x);
  const uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;  // to nearest, ties to even
  const uint32_t quiet = (u >> 16) | 0x40u;                         // a NaN stays one
  return {static_cast<uint16_t>((u & 0x7fffffffu) > 0x7f800000u ? quiet : rounded)};
}

// By subtraction: no library function, and no comparison with a limit of the type.
template <class A>
__device__ bool is_finite(A x) {
  return x - x == 0;
}

// Read through the path for data that no one writes during the kernel.
__device__ inline float read(const float* p) { return __ldg(p); }
__device__ inline double read(const double* p) { return __ldg(p); }
__device__ inline BFloat16 read(const BFloat16* p) { return {__ldg(reinterpret_cast<const unsigned short*>(p))}; }
__device__ inline Float16 read(const Float16* p) { return {__ldg(reinterpret_cast<const unsigned short*>(p))}; }

template <class S>
struct alignas(16) Pack {
  static constexpr int kCount = 16 / sizeof(S);
  S element[kCount];
};

__host__ __device__ inline bool is_aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

template <class S>
__device__ Pack<S> read_whole(const S* p) {
  return bits_as<Pack<S>>(__ldg(reinterpret_cast<const uint4*>(p)));
}

// Of memory that this launch writes, too: not through that path.
template <class S>
__device__ Pack<S> read_own(const S* p) {
  return bits_as<Pack<S>>(*reinterpret_cast<const uint4*>(p));
}

// Elements at, at + 1, ... of a run of `length`; beyond it zeros. The pack holds the same elements however it is read.
template <class S>
__device__ Pack<S> read_pack(const S* run, int at, int length, bool aligned) {
  if (aligned && at + Pack<S>::kCount <= length) return read_whole(run + at);
  Pack<S> pack;
#pragma unroll
  for (int e = 0; e < Pack<S>::kCount; ++e) pack.element[e] = at + e < length ? read(run + at + e) : S{};
  return pack;
}

template <class S>
__device__ void write_pack(const Pack<S>& pack, S* run, int at, int length, bool aligned) {
  if (aligned && at + Pack<S>::kCount <= length) {
    *reinterpret_cast<uint4*>(run + at) = bits_as<uint4>(pack);
    return;
  }
#pragma unroll
  for (int e = 0; e < Pack<S>::kCount; ++e)
    if (at + e < length) run[at + e] = pack.element[e];
}

}  // namespace mtlkernels::cuda
