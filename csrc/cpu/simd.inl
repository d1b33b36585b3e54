// Vectors, loads and conversions for one instruction set. Included once for each by kernels_*.cpp, inside
// namespace mtlkernels::cpu::<set>, with MTLKERNELS_VECTOR_BYTES and MTLKERNELS_X86_LEVEL (0, 2, 512) defined.

constexpr int64_t kChunkBytes = 4096;  // of accumulator type, a task: T = 8 fits the first-level cache
// Staged rows lie one cache line further apart than a page, or all of them would compete for the same cache sets.
constexpr int64_t kStageStride = kChunkBytes + 64;

template <class S> struct Accumulator {
  using type = float;
};
template <> struct Accumulator<double> {
  using type = double;
};
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

MTLKERNELS_INLINE Vector<float>::type load(const float* p) { return *reinterpret_cast<const Vector<float>::loaded*>(p); }
MTLKERNELS_INLINE Vector<double>::type load(const double* p) { return *reinterpret_cast<const Vector<double>::loaded*>(p); }

// Asks for what a row holds some steps later. Several rows are several streams, each of which the hardware follows to the
// end of a page only, and begins anew on the next. Past a row's end it asks for nothing that is needed, and faults never.
constexpr uintptr_t kFetchBytes = 2048;
MTLKERNELS_INLINE void fetch_ahead(const void* p) {
  __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(p) + kFetchBytes));
}

// Stores past the cache: the line is not read before it is written. `to` is aligned to a vector. Other threads see
// the values after a fence.
constexpr bool kCanStream = MTLKERNELS_X86_LEVEL > 0;
template <class V, class A>
MTLKERNELS_INLINE void stream_vector(V value, A* to) {
#if MTLKERNELS_X86_LEVEL == 512
  _mm512_stream_si512(reinterpret_cast<__m512i*>(to), reinterpret_cast<__m512i>(value));
#elif MTLKERNELS_X86_LEVEL == 2
  _mm256_stream_si256(reinterpret_cast<__m256i*>(to), reinterpret_cast<__m256i>(value));
#else
  *reinterpret_cast<V*>(to) = value;
#endif
}
MTLKERNELS_INLINE void store_fence() {
#if MTLKERNELS_X86_LEVEL > 0
  _mm_sfence();
#endif
}

// The lanes of a vector of float as two vectors of double.
using Doubles = Vector<double>::type;
MTLKERNELS_INLINE void split(Vector<float>::type v, Doubles& low, Doubles& high) {
#if MTLKERNELS_X86_LEVEL == 512
  const auto x = reinterpret_cast<__m512>(v);
  low = reinterpret_cast<Doubles>(_mm512_maskz_cvtps_pd(0xff, _mm512_castps512_ps256(x)));
  high = reinterpret_cast<Doubles>(_mm512_maskz_cvtps_pd(0xff, _mm512_maskz_extractf32x8_ps(0xff, x, 1)));
#elif MTLKERNELS_X86_LEVEL == 2
  const auto x = reinterpret_cast<__m256>(v);
  low = reinterpret_cast<Doubles>(_mm256_cvtps_pd(_mm256_castps256_ps128(x)));
  high = reinterpret_cast<Doubles>(_mm256_cvtps_pd(_mm256_extractf128_ps(x, 1)));
#else
  low = Doubles{v[0], v[1]};
  high = Doubles{v[2], v[3]};
#endif
}

// sums += lanes of v, in float64: a float vector's two halves fold onto one double vector.
template <class A>
MTLKERNELS_INLINE void fold_lanes(typename Vector<A>::type v, double* sums) {
  Doubles& total = *reinterpret_cast<Doubles*>(sums);
  if constexpr (std::is_same_v<A, double>) {
    total += v;
  } else {
    Doubles low, high;
    split(v, low, high);
    total += low + high;
  }
}

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

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
  const uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;  // to nearest, ties to even
  const uint32_t quiet = (u >> 16) | 0x40u;                         // a NaN stays one
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
    half = 0x7e00u;  // NaN
  } else if (magnitude >= 0x477ff000u) {
    half = 0x7c00u;  // rounds to 65536 or beyond: infinity
  } else if (magnitude < 0x38800000u) {
    half = bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;  // subnormal: the addition rounds
  } else {
    half = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;  // to nearest, ties to even
  }
  return {static_cast<uint16_t>(half | sign)};
}

// Vectors of 16- and 32-bit words as wide as a vector of float, for the conversions below.
typedef uint32_t Words __attribute__((vector_size(MTLKERNELS_VECTOR_BYTES)));
typedef uint16_t Halves __attribute__((vector_size(MTLKERNELS_VECTOR_BYTES / 2)));
typedef uint16_t LoadedHalves __attribute__((vector_size(MTLKERNELS_VECTOR_BYTES / 2), aligned(2), may_alias));
using Floats = Vector<float>::type;

// By intrinsics where there are any: compilers split a conversion of a whole vector into halves and put them together.
MTLKERNELS_INLINE Words widen_words(const BFloat16* p) {
#if MTLKERNELS_X86_LEVEL == 512
  return reinterpret_cast<Words>(
      _mm512_maskz_cvtepu16_epi32(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
#elif MTLKERNELS_X86_LEVEL == 2
  return reinterpret_cast<Words>(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#else
  return __builtin_convertvector(*reinterpret_cast<const LoadedHalves*>(p), Words);
#endif
}

MTLKERNELS_INLINE Floats load(const BFloat16* p) { return reinterpret_cast<Floats>(widen_words(p) << 16); }

// Two neighbours a word, which need no shuffle to widen: the one at the even place by a shift, the other by a mask.
typedef uint32_t LoadedWords __attribute__((vector_size(MTLKERNELS_VECTOR_BYTES), aligned(2), may_alias));

MTLKERNELS_INLINE Words load_pairs(const BFloat16* p) { return *reinterpret_cast<const LoadedWords*>(p); }
MTLKERNELS_INLINE Floats even(Words pairs) { return reinterpret_cast<Floats>(pairs << 16); }
MTLKERNELS_INLINE Floats odd(Words pairs) { return reinterpret_cast<Floats>(pairs & 0xffff0000u); }

// Rounded to the nearest, ties to even, in the upper half of each word; a NaN stays one. The lower half is not zero.
MTLKERNELS_INLINE Words round_to_upper(Floats x) {
  const Words u = reinterpret_cast<Words>(x);
  const Words rounded = u + 0x7fffu + ((u >> 16) & 1u);
#if MTLKERNELS_X86_LEVEL == 512
  const __mmask16 nan = _mm512_cmp_ps_mask(reinterpret_cast<__m512>(x), reinterpret_cast<__m512>(x), _CMP_UNORD_Q);
  const auto word = reinterpret_cast<__m512i>(u);
  return reinterpret_cast<Words>(
      _mm512_mask_or_epi32(reinterpret_cast<__m512i>(rounded), nan, word, _mm512_set1_epi32(0x400000)));
#else
  const Words nan = reinterpret_cast<Words>(x != x);
  return (nan & (u | 0x400000u)) | (~nan & rounded);
#endif
}

MTLKERNELS_INLINE Words narrow_pairs(Floats even, Floats odd) {
  return (round_to_upper(even) >> 16) | (round_to_upper(odd) & 0xffff0000u);
}

MTLKERNELS_INLINE Halves narrow(Floats x, BFloat16) {
  const Words rounded = round_to_upper(x) >> 16;
#if MTLKERNELS_X86_LEVEL == 512
  return reinterpret_cast<Halves>(_mm512_maskz_cvtepi32_epi16(0xffff, reinterpret_cast<__m512i>(rounded)));
#else
  return __builtin_convertvector(rounded, Halves);
#endif
}

#if MTLKERNELS_X86_LEVEL == 512
MTLKERNELS_INLINE Floats load(const Float16* p) {
  return reinterpret_cast<Floats>(_mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
}
MTLKERNELS_INLINE Halves narrow(Floats x, Float16) {
  return reinterpret_cast<Halves>(_mm512_maskz_cvtps_ph(0xffff, reinterpret_cast<__m512>(x), 0));
}
#elif MTLKERNELS_X86_LEVEL == 2
MTLKERNELS_INLINE Floats load(const Float16* p) {
  return reinterpret_cast<Floats>(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
MTLKERNELS_INLINE Halves narrow(Floats x, Float16) {
  return reinterpret_cast<Halves>(_mm256_cvtps_ph(reinterpret_cast<__m256>(x), 0));
}
#else
MTLKERNELS_INLINE Floats load(const Float16* p) {
  Floats x;
  for (int l = 0; l < kLanes<float>; ++l) x[l] = widen(p[l]);
  return x;
}
MTLKERNELS_INLINE Halves narrow(Floats x, Float16) {
  Halves bits;
  for (int l = 0; l < kLanes<float>; ++l) bits[l] = narrow(x[l], Float16{}).bits;
  return bits;
}
#endif

template <class S>
MTLKERNELS_INLINE void narrow_vector(Floats x, S* p) {
  *reinterpret_cast<LoadedHalves*>(p) = narrow(x, S{});
}

// The same past the cache; `p` is aligned to half a vector.
template <class S>
MTLKERNELS_INLINE void stream_narrow(Floats x, S* p) {
#if MTLKERNELS_X86_LEVEL == 512
  _mm256_stream_si256(reinterpret_cast<__m256i*>(p), reinterpret_cast<__m256i>(narrow(x, S{})));
#elif MTLKERNELS_X86_LEVEL == 2
  _mm_stream_si128(reinterpret_cast<__m128i*>(p), reinterpret_cast<__m128i>(narrow(x, S{})));
#else
  narrow_vector(x, p);
#endif
}

template <class S>
MTLKERNELS_INLINE void widen_run(const S* from, int64_t n, float* to) {
  int64_t k = 0;
  for (; k + kLanes<float> <= n; k += kLanes<float>) *reinterpret_cast<Vector<float>::loaded*>(to + k) = load(from + k);
  for (; k < n; ++k) to[k] = widen(from[k]);
}

template <class S>
MTLKERNELS_INLINE void narrow_run(const float* from, int64_t n, S* to) {
  int64_t k = 0;
  for (; k + kLanes<float> <= n; k += kLanes<float>) narrow_vector(load(from + k), to + k);
  for (; k < n; ++k) to[k] = narrow(from[k], S{});
}

MTLKERNELS_INLINE float widen(float x) { return x; }
MTLKERNELS_INLINE double widen(double x) { return x; }

// Half of kLanes<float> elements as float64, exactly. Which element is in which half and lane depends on the type alone, so
// the rows of a product agree.
template <int kHalf, class S>
MTLKERNELS_INLINE Doubles load_half(const S* p) {
  [[maybe_unused]] const S* const half = p + kHalf * kLanes<double>;
  if constexpr (std::is_same_v<S, double>) {
    return load(half);
#if MTLKERNELS_X86_LEVEL == 512
  } else if constexpr (std::is_same_v<S, float>) {
    return reinterpret_cast<Doubles>(_mm512_maskz_cvtps_pd(0xff, _mm256_loadu_ps(half)));
  } else if constexpr (std::is_same_v<S, BFloat16>) {  // even places or odd ones: no shuffle
    const __m256i pairs = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    const __m256i words = kHalf ? _mm256_and_si256(pairs, _mm256_set1_epi32(-0x10000)) : _mm256_slli_epi32(pairs, 16);
    return reinterpret_cast<Doubles>(_mm512_maskz_cvtps_pd(0xff, _mm256_castsi256_ps(words)));
  } else {
    const __m256 floats = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(half)));
    return reinterpret_cast<Doubles>(_mm512_maskz_cvtps_pd(0xff, floats));
  }
#elif MTLKERNELS_X86_LEVEL == 2
  } else if constexpr (std::is_same_v<S, float>) {
    return reinterpret_cast<Doubles>(_mm256_cvtps_pd(_mm_loadu_ps(half)));
  } else if constexpr (std::is_same_v<S, BFloat16>) {
    const __m128i pairs = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    const __m128i words = kHalf ? _mm_and_si128(pairs, _mm_set1_epi32(-0x10000)) : _mm_slli_epi32(pairs, 16);
    return reinterpret_cast<Doubles>(_mm256_cvtps_pd(_mm_castsi128_ps(words)));
  } else {
    const __m128 floats = _mm_cvtph_ps(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(half)));
    return reinterpret_cast<Doubles>(_mm256_cvtps_pd(floats));
  }
#else
  } else {
    Doubles x;
    for (int l = 0; l < kLanes<double>; ++l) x[l] = widen(half[l]);
    return x;
  }
#endif
}

// 0 for a finite number, else NaN; of a vector, lane by lane.
template <class X>
MTLKERNELS_INLINE X zero_if_finite(X x) {
  return x - x;
}

template <class A>
MTLKERNELS_INLINE bool all_zero(typename Vector<A>::type lanes, A rest) {
  for (int l = 0; l < kLanes<A>; ++l) rest += lanes[l];
  return rest == 0;
}

template <class A>
MTLKERNELS_INLINE bool all_finite(const A* x, int64_t n) {
  typename Vector<A>::type spoilt = {};
  A rest = 0;
  int64_t k = 0;
  for (; k + kLanes<A> <= n; k += kLanes<A>) spoilt += zero_if_finite(load(x + k));
  for (; k < n; ++k) rest += zero_if_finite(x[k]);
  return all_zero<A>(spoilt, rest);
}
