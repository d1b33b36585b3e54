// Vectors, loads and conversions for one instruction set. Included once for each by kernels_*.cpp, inside
// namespace mtlkernels::cpu::<set>, with MTLKERNELS_VECTOR_BYTES and MTLKERNELS_X86_LEVEL (0, 2, 512) defined.

constexpr int64_t kChunkBytes = 4096;  // of accumulator type, a task: T = 8 fits the first-level cache

template <class S> struct Accumulator { using type = float; };
template <> struct Accumulator<double> { using type = double; };
template <class S> using accumulator_t = typename Accumulator<S>::type;

template <class A> struct Vector;
template <> struct Vector<float> {
  typedef float type __attribute__((vector_size(MTLKERNELS_VECTOR_BYTES)));
  typedef float loaded __attribute__((vector_size(MTLKERNELS_VECTOR_BYTES), aligned(4), may_alias));
};
template <> struct Vector<double> {
  typedef double type __attribute__((vector_size(MTLKERNELS_VECTOR_BYTES)));
  typedef double loaded __attribute__((vector_size(MTLKERNELS_VECTOR_BYTES), aligned(8), may_alias));
};
template <class A> constexpr int64_t kLanes = MTLKERNELS_VECTOR_BYTES / static_cast<int64_t>(sizeof(A));
template <class A> constexpr int64_t kChunk = kChunkBytes / static_cast<int64_t>(sizeof(A));

template <class A>
MTLKERNELS_INLINE typename Vector<A>::type load(const A* p) {
  return *reinterpret_cast<const typename Vector<A>::loaded*>(p);
}

// Lanes are added in float64 and in a fixed order.
template <class A>
MTLKERNELS_INLINE double sum_lanes(typename Vector<A>::type v) {
  constexpr int kN = kLanes<A>;
  double lane[kN];
#pragma GCC unroll 16
  for (int l = 0; l < kN; ++l) lane[l] = static_cast<double>(v[l]);
#pragma GCC unroll 4
  for (int width = kN / 2; width > 0; width /= 2) {
#pragma GCC unroll 8
    for (int l = 0; l < width; ++l) lane[l] += lane[l + width];
  }
  return lane[0];
}

struct BFloat16 { uint16_t bits; };
struct Float16 { uint16_t bits; };

template <class To, class From>
MTLKERNELS_INLINE To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  __builtin_memcpy(&to, &from, sizeof(to));
  return to;
}

MTLKERNELS_INLINE float widen(BFloat16 x) { return bit_cast<float>(static_cast<uint32_t>(x.bits) << 16); }

MTLKERNELS_INLINE BFloat16 narrow(float x, BFloat16) {
  const uint32_t u = bit_cast<uint32_t>(x);
  const uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;      // to nearest, ties to even
  const uint32_t quiet = (u >> 16) | 0x40u;                             // a NaN stays one
  return {static_cast<uint16_t>((u & 0x7fffffffu) > 0x7f800000u ? quiet : rounded)};
}

// Half precision without hardware: shift the fields into a float's place and let one exact multiplication by a power
// of two correct the exponent's bias, for normal, subnormal, infinite and NaN values alike.
MTLKERNELS_INLINE float widen(Float16 x) {
  const uint32_t magnitude = static_cast<uint32_t>(x.bits & 0x7fffu) << 13;
  const float scaled = bit_cast<float>(magnitude) * 0x1p112f;
  const uint32_t special = (x.bits & 0x7c00u) == 0x7c00u ? 0x7f800000u : 0u;
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16;
  return bit_cast<float>(bit_cast<uint32_t>(scaled) | special | sign);
}

MTLKERNELS_INLINE Float16 narrow(float x, Float16) {
  const uint32_t u = bit_cast<uint32_t>(x);
  const uint32_t sign = (u >> 16) & 0x8000u;
  const uint32_t magnitude = u & 0x7fffffffu;
  uint32_t half;
  if (magnitude > 0x7f800000u) {
    half = 0x7e00u;                                                     // NaN
  } else if (magnitude >= 0x477ff000u) {
    half = 0x7c00u;                                                     // rounds to 65536 or beyond: infinity
  } else if (magnitude < 0x38800000u) {
    half = bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;  // subnormal: the addition rounds
  } else {
    half = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;  // to nearest, ties to even
  }
  return {static_cast<uint16_t>(half | sign)};
}

template <class S>
MTLKERNELS_INLINE void widen_run(const S* from, int64_t n, float* to) {
  int64_t k = 0;
  if constexpr (std::is_same_v<S, Float16>) {
#if MTLKERNELS_X86_LEVEL == 512
    for (; k + 16 <= n; k += 16)
      _mm512_storeu_ps(to + k, _mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + k))));
#elif MTLKERNELS_X86_LEVEL == 2
    for (; k + 8 <= n; k += 8)
      _mm256_storeu_ps(to + k, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + k))));
#endif
  }
  for (; k < n; ++k) to[k] = widen(from[k]);
}

template <class S>
MTLKERNELS_INLINE void narrow_run(const float* from, int64_t n, S* to) {
  int64_t k = 0;
  if constexpr (std::is_same_v<S, Float16>) {
#if MTLKERNELS_X86_LEVEL == 512
    for (; k + 16 <= n; k += 16)
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + k), _mm512_maskz_cvtps_ph(0xffff, _mm512_loadu_ps(from + k), 0));
#elif MTLKERNELS_X86_LEVEL == 2
    for (; k + 8 <= n; k += 8)
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to + k), _mm256_cvtps_ph(_mm256_loadu_ps(from + k), 0));
#endif
  }
  for (; k < n; ++k) to[k] = narrow(from[k], S{});
}

// `n` elements as accumulators: in place where they are that already, else converted into `stage`.
template <class S>
MTLKERNELS_INLINE const accumulator_t<S>* widened(const S* row, int64_t n, accumulator_t<S>* stage) {
  if constexpr (std::is_same_v<S, accumulator_t<S>>) {
    return row;
  } else {
    widen_run(row, n, stage);
    return stage;
  }
}
