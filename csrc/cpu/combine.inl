// Weighted sum of T rows: out[k] = beta out[k] + sum_t w_t x_t[k], accumulated in the accumulator's type in the order
// of the tasks and rounded once, to the rows' type or to the accumulator's. Reads every row once and writes `out` once:
// (T + 1) elements of traffic each.
// Factors that a float32 sum would lose or blow up are added up in float64 instead; and so is an element whose float32 sum
// is not finite: what overflowed may have been a part of a sum that fits.

constexpr int kTogether = 8;  // rows of one pass over the accumulators

// acc = (fresh ? 0 : acc) + sum_i w_i x_i. A fresh sum starts from zero, not from the first product: which of two
// products is fused into the addition would else be the compiler's choice, and differ from an accumulation onto zero.
// kStream stores whole vectors past the cache; `acc` is aligned to one then. Returns whether all fresh sums are finite.
template <class S, int kRows, bool kFresh, bool kStream>
MTLKERNELS_NOINLINE bool add_weighted(const S* const* rows, const accumulator_t<S>* weights, int64_t n,
                                      accumulator_t<S>* __restrict acc) {
  using A = accumulator_t<S>;
  using V = typename Vector<A>::type;
  const S* x[kRows];
  A w[kRows];
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) x[i] = rows[i], w[i] = weights[i];
  int64_t k = 0;
  V spoilt = {};
  A rest = 0;
  for (; k + kLanes<A> <= n; k += kLanes<A>) {
    V sum = {};
    if constexpr (!kFresh) sum = load(acc + k);
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) sum += w[i] * load(x[i] + k);
    if constexpr (kFresh) spoilt += zero_if_finite(sum);
    if constexpr (kStream) {
      stream_vector(sum, acc + k);
    } else {
      *reinterpret_cast<typename Vector<A>::loaded*>(acc + k) = sum;
    }
  }
  for (; k < n; ++k) {
    A sum = kFresh ? A{0} : acc[k];
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) sum += w[i] * widen(x[i][k]);
    if constexpr (kFresh) rest += zero_if_finite(sum);
    acc[k] = sum;
  }
  return all_zero<A>(spoilt, rest);
}

template <class S, bool kFresh, bool kStream = false>
bool add_weighted(const S* const* rows, const accumulator_t<S>* weights, int64_t count, int64_t n, accumulator_t<S>* acc) {
  switch (count) {
    case 1: return add_weighted<S, 1, kFresh, kStream>(rows, weights, n, acc);
    case 2: return add_weighted<S, 2, kFresh, kStream>(rows, weights, n, acc);
    case 3: return add_weighted<S, 3, kFresh, kStream>(rows, weights, n, acc);
    case 4: return add_weighted<S, 4, kFresh, kStream>(rows, weights, n, acc);
    case 5: return add_weighted<S, 5, kFresh, kStream>(rows, weights, n, acc);
    case 6: return add_weighted<S, 6, kFresh, kStream>(rows, weights, n, acc);
    case 7: return add_weighted<S, 7, kFresh, kStream>(rows, weights, n, acc);
    case 8: return add_weighted<S, 8, kFresh, kStream>(rows, weights, n, acc);
  }
  return true;
}

// out = sum_i w_i x_i in one pass, for rows and an output of 16 bits: nothing is gathered before it is rounded. Returns
// whether all sums are finite.
template <class S, int kRows, bool kStream>
MTLKERNELS_NOINLINE bool write_narrow(const S* const* rows, const float* weights, int64_t n, S* __restrict out) {
  const S* x[kRows];
  float w[kRows];
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) x[i] = rows[i], w[i] = weights[i];
  int64_t k = 0;
  Floats spoilt = {};
  float rest = 0;
  auto one_vector = [&]() __attribute__((always_inline)) {
    Floats sum = {};
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
      fetch_ahead(x[i] + k);
      sum += w[i] * load(x[i] + k);
    }
    spoilt += zero_if_finite(sum);
    if constexpr (kStream) {
      stream_narrow(sum, out + k);
    } else {
      narrow_vector(sum, out + k);
    }
    k += kLanes<float>;
  };
  if constexpr (std::is_same_v<S, BFloat16>) {
    if (kStream && n >= kLanes<float> && reinterpret_cast<intptr_t>(out) % MTLKERNELS_VECTOR_BYTES) one_vector();
    for (; k + 2 * kLanes<float> <= n; k += 2 * kLanes<float>) {
      Floats low = {}, high = {};
#pragma GCC unroll 8
      for (int i = 0; i < kRows; ++i) {
        fetch_ahead(x[i] + k);
        const Words pairs = load_pairs(x[i] + k);
        low += w[i] * even(pairs);
        high += w[i] * odd(pairs);
      }
      spoilt += zero_if_finite(low) + zero_if_finite(high);
      const Words pairs = narrow_pairs(low, high);
      if constexpr (kStream) {
        stream_vector(pairs, out + k);
      } else {
        *reinterpret_cast<LoadedWords*>(out + k) = pairs;
      }
    }
  }
  while (k + kLanes<float> <= n) one_vector();
  for (; k < n; ++k) {
    float sum = 0;
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) sum += w[i] * widen(x[i][k]);
    rest += zero_if_finite(sum);
    out[k] = narrow(sum, S{});
  }
  return all_zero<float>(spoilt, rest);
}

template <class S, bool kStream>
bool write_narrow(const S* const* rows, const float* weights, int64_t count, int64_t n, S* out) {
  switch (count) {
    case 1: return write_narrow<S, 1, kStream>(rows, weights, n, out);
    case 2: return write_narrow<S, 2, kStream>(rows, weights, n, out);
    case 3: return write_narrow<S, 3, kStream>(rows, weights, n, out);
    case 4: return write_narrow<S, 4, kStream>(rows, weights, n, out);
    case 5: return write_narrow<S, 5, kStream>(rows, weights, n, out);
    case 6: return write_narrow<S, 6, kStream>(rows, weights, n, out);
    case 7: return write_narrow<S, 7, kStream>(rows, weights, n, out);
    case 8: return write_narrow<S, 8, kStream>(rows, weights, n, out);
  }
  return true;
}

// Copies whole aligned vectors past the cache (no read of the line before it is written), the rest as usual.
inline void store_streaming(const char* from, int64_t bytes, char* to) {
  int64_t k = 0;
#if MTLKERNELS_X86_LEVEL == 512
  k = std::min<int64_t>(bytes, -reinterpret_cast<intptr_t>(to) & 63);
  std::memcpy(to, from, k);
  for (; k + 64 <= bytes; k += 64) _mm512_stream_si512(reinterpret_cast<__m512i*>(to + k), _mm512_loadu_si512(from + k));
#elif MTLKERNELS_X86_LEVEL == 2
  k = std::min<int64_t>(bytes, -reinterpret_cast<intptr_t>(to) & 31);
  std::memcpy(to, from, k);
  for (; k + 32 <= bytes; k += 32)
    _mm256_stream_si256(reinterpret_cast<__m256i*>(to + k), _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + k)));
#endif
  std::memcpy(to + k, from + k, bytes - k);
}

template <class S>
void store_run(const accumulator_t<S>* acc, int64_t n, S* out, bool stream) {
  const void* from = acc;
  alignas(64) S narrowed[std::is_same_v<S, accumulator_t<S>> ? 1 : kChunk<accumulator_t<S>>];
  if constexpr (!std::is_same_v<S, accumulator_t<S>>) {
    narrow_run(acc, n, narrowed);
    from = narrowed;
  }
  const int64_t bytes = n * static_cast<int64_t>(sizeof(S));
  if (stream) {
    store_streaming(static_cast<const char*>(from), bytes, reinterpret_cast<char*>(out));
  } else {
    std::memcpy(out, from, bytes);
  }
}

// The rows and weights of one pass, from element `begin` on.
template <class S>
int64_t pass(const void* const* rows, const double* weights, int64_t tasks, int64_t first, int64_t begin, const S** x,
             accumulator_t<S>* w) {
  const int64_t count = std::min<int64_t>(kTogether, tasks - first);
  for (int64_t i = 0; i < count; ++i) {
    x[i] = static_cast<const S*>(rows[first + i]) + begin;
    w[i] = static_cast<accumulator_t<S>>(weights[first + i]);
  }
  return count;
}

// One element's sum in float64. `old` is not read where beta is 0.
template <class S, class O>
double wide_sum(const void* const* rows, const double* weights, int64_t tasks, int64_t k, const O* old, double beta) {
  double sum = beta == 0 ? 0.0 : beta * widen(old[k]);
  for (int64_t t = 0; t < tasks; ++t) sum += weights[t] * widen(static_cast<const S*>(rows[t])[k]);
  return sum;
}

// Puts the float64 sum in place of every float32 sum that is not finite. at: the first element of `sums`.
template <class S, class X, class O>
MTLKERNELS_NOINLINE void mend_sums(const void* const* rows, const double* weights, int64_t tasks, int64_t at, int64_t n,
                                   const O* old, double beta, X* sums) {
  for (int64_t k = 0; k < n; ++k) {
    if (zero_if_finite(widen(sums[k])) == 0) continue;
    const auto sum = static_cast<float>(wide_sum<S>(rows, weights, tasks, at + k, old, beta));
    if constexpr (sizeof(X) == 2) {
      sums[k] = narrow(sum, X{});
    } else {
      sums[k] = sum;
    }
  }
}

// A float32 accumulation in float64: factors and products keep the range they have there.
template <class S, class O>
MTLKERNELS_NOINLINE void combine_wide(const void* const* rows, const double* weights, int64_t tasks, int64_t length, O* out,
                                      double beta, bool stream) {
  double sum[kChunk<double>];
  float rounded[kChunk<double>];
  for (int64_t begin = 0; begin < length; begin += kChunk<double>) {
    const int64_t n = std::min(kChunk<double>, length - begin);
    for (int64_t k = 0; k < n; ++k) sum[k] = beta == 0 ? 0.0 : beta * widen(out[begin + k]);
    for (int64_t t = 0; t < tasks; ++t) {
      const S* x = static_cast<const S*>(rows[t]) + begin;
      for (int64_t k = 0; k < n; ++k) sum[k] += weights[t] * widen(x[k]);
    }
    for (int64_t k = 0; k < n; ++k) rounded[k] = static_cast<float>(sum[k]);
    store_run<O>(rounded, n, out + begin, stream);
  }
  if (stream) store_fence();
}

// O: of `out`.
template <class S, class O = S>
void combine(const void* const* rows, const double* weights, int64_t tasks, int64_t length, void* out_memory, double beta,
             bool stream) {
  using A = accumulator_t<S>;
  O* const out = static_cast<O*>(out_memory);
  if constexpr (!std::is_same_v<A, double>) {
    bool wide = outside_float(beta);
    for (int64_t t = 0; t < tasks; ++t) wide = wide || outside_float(weights[t]);
    if (wide) return combine_wide<S>(rows, weights, tasks, length, out, beta, stream);
  }
  const S* x[kTogether];
  A w[kTogether];
  if (beta == 0 && tasks > 0 && tasks <= kTogether) {  // one pass: no need to gather a chunk before it is stored
    pass(rows, weights, tasks, 0, 0, x, w);
    [[maybe_unused]] bool finite;
    if constexpr (std::is_same_v<O, A>) {
      stream = stream && kCanStream && reinterpret_cast<intptr_t>(out) % MTLKERNELS_VECTOR_BYTES == 0;
      finite =
          stream ? add_weighted<S, true, true>(x, w, tasks, length, out) : add_weighted<S, true>(x, w, tasks, length, out);
    } else {
      stream = stream && kCanStream && reinterpret_cast<intptr_t>(out) % (MTLKERNELS_VECTOR_BYTES / 2) == 0;
      finite = stream ? write_narrow<S, true>(x, w, tasks, length, out) : write_narrow<S, false>(x, w, tasks, length, out);
    }
    if (stream) store_fence();
    if constexpr (!std::is_same_v<A, double>)
      if (!finite) mend_sums<S>(rows, weights, tasks, 0, length, out, 0.0, out);
    return;
  }
  alignas(64) A acc[kChunk<A>];
  for (int64_t begin = 0; begin < length; begin += kChunk<A>) {
    const int64_t n = std::min(kChunk<A>, length - begin);
    bool fresh = beta == 0;
    if (!fresh)
      for (int64_t k = 0; k < n; ++k) acc[k] = static_cast<A>(beta) * widen(out[begin + k]);
    for (int64_t first = 0; first < tasks; first += kTogether) {
      const int64_t count = pass(rows, weights, tasks, first, begin, x, w);
      fresh ? add_weighted<S, true>(x, w, count, n, acc) : add_weighted<S, false>(x, w, count, n, acc);
      fresh = false;
    }
    if constexpr (!std::is_same_v<A, double>)
      if (!all_finite(acc, n)) mend_sums<S>(rows, weights, tasks, begin, n, out, beta, acc);
    store_run<O>(acc, n, out + begin, stream);
  }
  if (stream) store_fence();
}
