// GradDrop of T rows: out[k] = sum_t f_t x_t[k], f_t = 1 where the sign of x_t[k] was drawn, else leak_t. One pass: reads
// every row once and writes `out` once. With S and A the sums of x_t[k] and |x_t[k]| and tau = 2U - 1 the element's draw,
// the positive sign is drawn where S > tau A and the negative one where S < tau A; where all signs agree (|S| = A) it is
// theirs. Sums are in the accumulator's type and the tasks' order; a decision depends on one rounded product, so neither
// fused multiplication nor the cut into vectors can change it. An element of which A or the answer is not finite in float32
// is computed again in float64, the decision too.

template <class S>
MTLKERNELS_INLINE const accumulator_t<S>* widened(const S* row, int64_t n, accumulator_t<S>* stage) {
  if constexpr (std::is_same_v<S, accumulator_t<S>>) {
    return row;
  } else {
    widen_run(row, n, stage);
    return stage;
  }
}

// The draws of elements flat .. flat + n; flat is a multiple of 4. Writes whole groups of 4.
template <class A>
MTLKERNELS_NOINLINE void draw_thresholds(uint64_t seed, uint64_t step, int64_t flat, int64_t n, A* tau) {
  const uint64_t group = static_cast<uint64_t>(flat) / 4;
  const int64_t groups = (n + 3) / 4;
  for (int64_t i = 0; i < groups; ++i) {
    const Philox drawn = philox(group + i, step, seed);
    tau[4 * i] = philox_threshold(drawn.word[0]);
    tau[4 * i + 1] = philox_threshold(drawn.word[1]);
    tau[4 * i + 2] = philox_threshold(drawn.word[2]);
    tau[4 * i + 3] = philox_threshold(drawn.word[3]);
  }
}

// Steps are written for X, the accumulator's type or a vector of it: random signs would cost a branch its prediction.
template <class X>
MTLKERNELS_INLINE X magnitude(X x) {
  return x < 0 ? -x : x;
}

template <class X>
MTLKERNELS_INLINE void add_signs_step(X x, X& sum, X& size) {
  sum += x;
  size += magnitude(x);
}

// 1 where the sign is kept, else 0.
template <class X>
MTLKERNELS_INLINE void draw_signs_step(X tau, X& sum, X& size) {
  const X zero = {}, one = zero + 1, threshold = tau * size;
  const X plus = (sum > threshold) | (sum == size) ? one : zero;
  const X minus = (sum < threshold) | (sum == -size) ? one : zero;
  sum = plus;
  size = minus;
}

// A factor of 0 is multiplied by, not skipped: a NaN or an infinity reaches the direction.
template <class X>
MTLKERNELS_INLINE void add_kept_step(X x, X leak, X plus, X minus, X& acc) {
  const X kept = x > 0 ? plus : minus;
  acc += (kept > 0 ? kept : leak) * x;
}

template <class A>
MTLKERNELS_INLINE void store(typename Vector<A>::type x, A* p) {
  *reinterpret_cast<typename Vector<A>::loaded*>(p) = x;
}

template <class A>
MTLKERNELS_NOINLINE void add_signs(const A* x, int64_t n, A* sum, A* size) {
  int64_t k = 0;
  for (; k + kLanes<A> <= n; k += kLanes<A>) {
    auto s = load(sum + k), a = load(size + k);
    add_signs_step(load(x + k), s, a);
    store(s, sum + k), store(a, size + k);
  }
  for (; k < n; ++k) add_signs_step(x[k], sum[k], size[k]);
}

template <class A>
MTLKERNELS_NOINLINE void draw_signs(const A* tau, int64_t n, A* sum, A* size) {
  int64_t k = 0;
  for (; k + kLanes<A> <= n; k += kLanes<A>) {
    auto s = load(sum + k), a = load(size + k);
    draw_signs_step(load(tau + k), s, a);
    store(s, sum + k), store(a, size + k);
  }
  for (; k < n; ++k) draw_signs_step(tau[k], sum[k], size[k]);
}

template <class A>
MTLKERNELS_NOINLINE void add_kept(const A* x, int64_t n, A leak, const A* plus, const A* minus, A* acc) {
  const typename Vector<A>::type leaks = leak - typename Vector<A>::type{};
  int64_t k = 0;
  for (; k + kLanes<A> <= n; k += kLanes<A>) {
    auto sum = load(acc + k);
    add_kept_step(load(x + k), leaks, load(plus + k), load(minus + k), sum);
    store(sum, acc + k);
  }
  for (; k < n; ++k) add_kept_step(x[k], leak, plus[k], minus[k], acc[k]);
}

// Computes the elements again whose float32 sums are not finite. sums: of the elements from `begin` on.
template <class S>
MTLKERNELS_NOINLINE void mend_drops(const void* const* rows, const double* leaks, int64_t tasks, int64_t begin, int64_t n,
                                    uint64_t seed, uint64_t step, int64_t flat, float* sums) {
  for (int64_t k = 0; k < n; ++k) {
    float narrow_size = 0;
    double sum = 0, size = 0, kept = 0;
    const auto element = [&](int64_t t) { return widen(static_cast<const S*>(rows[t])[begin + k]); };
    for (int64_t t = 0; t < tasks; ++t) narrow_size += magnitude(element(t));
    if (zero_if_finite(narrow_size) == 0 && zero_if_finite(sums[k]) == 0) continue;
    for (int64_t t = 0; t < tasks; ++t) add_signs_step<double>(element(t), sum, size);
    const uint64_t place = static_cast<uint64_t>(flat + begin + k);
    draw_signs_step<double>(philox_threshold(philox(place / 4, step, seed).word[place % 4]), sum, size);
    for (int64_t t = 0; t < tasks; ++t) add_kept_step<double>(element(t), leaks[t], sum, size, kept);
    sums[k] = static_cast<float>(kept);
  }
}

template <class S>
void graddrop(const void* const* rows, const double* leaks, int64_t tasks, int64_t length, uint64_t seed, uint64_t step,
              int64_t flat, void* out_memory, bool stream) {
  using A = accumulator_t<S>;
  S* const out = static_cast<S*>(out_memory);
  alignas(64) A sum[kChunk<A>], size[kChunk<A>], acc[kChunk<A>], stage[kChunk<A>];
  for (int64_t begin = 0; begin < length; begin += kChunk<A>) {
    const int64_t n = std::min(kChunk<A>, length - begin);
    std::fill(sum, sum + n, A{0});
    std::fill(size, size + n, A{0});
    for (int64_t t = 0; t < tasks; ++t) add_signs(widened(static_cast<const S*>(rows[t]) + begin, n, stage), n, sum, size);
    const bool fits = all_finite(size, n);
    draw_thresholds(seed, step, flat + begin, n, acc);
    draw_signs(acc, n, sum, size);
    std::fill(acc, acc + n, A{0});
    for (int64_t t = 0; t < tasks; ++t) {
      const A* x = widened(static_cast<const S*>(rows[t]) + begin, n, stage);
      add_kept(x, n, static_cast<A>(leaks[t]), sum, size, acc);
    }
    if constexpr (std::is_same_v<A, float>)
      if (!fits || !all_finite(acc, n)) mend_drops<S>(rows, leaks, tasks, begin, n, seed, step, flat, acc);
    store_run<S>(acc, n, out + begin, stream);
  }
#if MTLKERNELS_X86_LEVEL > 0
  if (stream) _mm_sfence();
#endif
}
