// One row of gradients into one row of a state that lasts from step to step. Each reads the gradient and the state once
// and writes the state. An element whose new value would not be finite stays as it was, and the caller is told: one bad
// step must not spoil every later one.

MTLKERNELS_INLINE Vector<float>::type root(Vector<float>::type x) {
#if MTLKERNELS_X86_LEVEL == 512
  return reinterpret_cast<Vector<float>::type>(_mm512_maskz_sqrt_ps(0xffff, reinterpret_cast<__m512>(x)));
#elif MTLKERNELS_X86_LEVEL == 2
  return reinterpret_cast<Vector<float>::type>(_mm256_sqrt_ps(reinterpret_cast<__m256>(x)));
#else
  for (int l = 0; l < kLanes<float>; ++l) x[l] = std::sqrt(x[l]);
  return x;
#endif
}

MTLKERNELS_INLINE Vector<double>::type root(Vector<double>::type x) {
  for (int l = 0; l < kLanes<double>; ++l) x[l] = std::sqrt(x[l]);
  return x;
}

MTLKERNELS_INLINE float root(float x) { return std::sqrt(x); }
MTLKERNELS_INLINE double root(double x) { return std::sqrt(x); }

// X is the accumulator's type or a vector of it.
template <class X, class A>
MTLKERNELS_INLINE void track_step(X x, A scale, A rate, X& state, X& spoilt) {
  const X moved = state + rate * (scale * x - state);
  const X bad = zero_if_finite(moved);
  spoilt += bad;
  state = bad == 0 ? moved : state;
}

// Of the elements that have stayed as they were before: those that float64 can move. Returns whether none had to stay.
template <class A>
MTLKERNELS_NOINLINE bool mend_state(const A* x, double scale, double rate, int64_t n, const A* before, A* state) {
  const A a = static_cast<A>(scale), r = static_cast<A>(rate);
  bool finite = true;
  for (int64_t k = 0; k < n; ++k) {
    const double old = before[k];
    A ignored = 0, tried = before[k];
    track_step(x[k], a, r, tried, ignored);
    if (ignored == 0) continue;
    const A moved = static_cast<A>(old + rate * (scale * x[k] - old));
    if (zero_if_finite(moved) == 0) {
      state[k] = moved;
    } else {
      finite = false;
    }
  }
  return finite;
}

// state += rate (scale x - state), x = 0 where the gradient is absent (null). A new value that is not finite is computed
// again in float64: what overflowed may have been a part of it. Returns whether all are finite then.
template <class S>
bool track(const void* row, double scale, double rate, int64_t length, void* state_memory) {
  using A = accumulator_t<S>;
  using V = typename Vector<A>::type;
  A* const state = static_cast<A*>(state_memory);
  const A a = static_cast<A>(scale), r = static_cast<A>(rate);
  alignas(64) A stage[kChunk<A>], before[kChunk<A>];
  if (!row) std::fill(stage, stage + kChunk<A>, A{0});
  bool finite = true;
  for (int64_t begin = 0; begin < length; begin += kChunk<A>) {
    const int64_t n = std::min(kChunk<A>, length - begin);
    const A* x = row ? widened(static_cast<const S*>(row) + begin, n, stage) : stage;
    A* y = state + begin;
    std::copy(y, y + n, before);
    V lanes = {};
    A rest = 0;
    int64_t k = 0;
    for (; k + kLanes<A> <= n; k += kLanes<A>) {
      V kept = load(y + k);
      track_step(load(x + k), a, r, kept, lanes);
      store(kept, y + k);
    }
    for (; k < n; ++k) track_step(x[k], a, r, y[k], rest);
    if (!all_zero<A>(lanes, rest)) finite = mend_state(x, scale, rate, n, before, y) && finite;
  }
  return finite;
}

// 0 where the square is 0: with nothing seen yet and eps = 0 the quotient would be 0 / 0.
template <class X, class A>
MTLKERNELS_INLINE void excess_step(X x, A eps, X& state, X& sum) {
  const X square = x * x, grown = state + square;
  const X bad = zero_if_finite(grown);
  const X quotient = square / root(grown + eps);
  sum += (square == 0 ? square : quotient) + bad;
  state = bad == 0 ? grown : state;
}

// state += x^2; returns sum x^2 / sqrt(state + eps) over the run, NaN where a new value is not finite. Terms are in the
// accumulator's type; a lane adds kChunk / kLanes of them before float64 takes over.
template <class S>
double excess(const void* row, double eps, int64_t length, void* state_memory) {
  using A = accumulator_t<S>;
  using V = typename Vector<A>::type;
  A* const state = static_cast<A*>(state_memory);
  const A e = static_cast<A>(eps);
  alignas(64) A stage[kChunk<A>];
  alignas(64) double lanes[kLanes<double>] = {};
  double total = 0;
  for (int64_t begin = 0; begin < length; begin += kChunk<A>) {
    const int64_t n = std::min(kChunk<A>, length - begin);
    const A* x = widened(static_cast<const S*>(row) + begin, n, stage);
    A* y = state + begin;
    V sum = {};
    A rest = 0;
    int64_t k = 0;
    for (; k + kLanes<A> <= n; k += kLanes<A>) {
      V kept = load(y + k);
      excess_step(load(x + k), e, kept, sum);
      store(kept, y + k);
    }
    for (; k < n; ++k) excess_step(x[k], e, y[k], rest);
    fold_lanes<A>(sum, lanes);
    total += rest;
  }
  for (const double lane : lanes) total += lane;
  return total;
}
