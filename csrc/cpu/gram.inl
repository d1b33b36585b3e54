// Gram matrix of T rows: K_ij = sum_k x_i[k] x_j[k], lower triangle, one pass.
//
// Rows are walked in chunks. Inside a chunk, tiles of pairs accumulate in vector registers in the accumulator's type (a
// few hundred products a lane); lanes and chunks are added in float64, in an order that depends on the lengths alone.
// T (T + 1) / 2 multiply-adds for T loads: bound by memory up to T = 12 or so, by arithmetic beyond.

// The widest triangle that is accumulated in one pass over the rows, and the square tile beyond it. Of the 36
// accumulators of eight rows a few live in memory: that costs less than reading a stream of rows twice.
constexpr int kWholeTriangle = MTLKERNELS_VECTOR_BYTES == 64 ? 8 : 4;
constexpr int kTile = MTLKERNELS_VECTOR_BYTES == 64 ? 4 : 3;
// Rows are read in place by up to this many tasks, with 16-bit elements, which every tile widens anew, by fewer.
constexpr int64_t kInPlaceNarrow = 16;
constexpr int64_t kLongRun = 4;  // chunks, of rows that are read once
constexpr int64_t kStreams = 8;  // rows whose next run square tiles leave to the hardware

// Two rows' part of the run after this one, fetched into the second-level cache by the way: tiles compute, and the rows
// of many tasks are more streams than hardware follows, each of which it loses at the end of a page.
struct Ahead {
  uintptr_t first, second;
  int64_t stride;  // bytes a step

  MTLKERNELS_INLINE void fetch(int64_t step) const {
    __builtin_prefetch(reinterpret_cast<const void*>(first + step * stride), 0, 2);
    __builtin_prefetch(reinterpret_cast<const void*>(second + step * stride), 0, 2);
  }
};

// Hands the rows of a run out to its tiles, two at a time; from three tiles a side on all rows have their turn.
struct AheadRows {
  const void* const* rows;
  int64_t tasks, offset, stride;
  int64_t next = 0;

  uintptr_t row() {
    const auto at = reinterpret_cast<uintptr_t>(rows[next]) + offset;
    next = next + 1 < tasks ? next + 1 : 0;
    return at;
  }
  Ahead take() {
    const uintptr_t first = row();
    return {first, row(), stride};
  }
};

// Pairs inside A rows. U independent copies hide the latency of the multiply-add where A(A+1)/2 alone cannot.
template <class S, int kRows, int U, bool kAhead>
MTLKERNELS_NOINLINE void triangle_tile(const S* const* rows, int64_t first, int64_t steps, double* sums,
                                       const Ahead& ahead) {
  using A = accumulator_t<S>;
  using V = typename Vector<A>::type;
  constexpr int kPairs = kRows * (kRows + 1) / 2;
  const S* x[kRows];
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) x[i] = rows[first + i];
  V sum[U][kPairs] = {};
  int64_t s = 0;
  auto step = [&](int u, int64_t at) __attribute__((always_inline)) {
    V value[kRows];
    if constexpr (kAhead) ahead.fetch(at / kLanes<A>);
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
      if constexpr (!kAhead) fetch_ahead(x[i] + at);
      value[i] = load(x[i] + at);
    }
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 8
      for (int j = 0; j <= i; ++j) sum[u][i * (i + 1) / 2 + j] += value[i] * value[j];
    }
  };
  for (; s + U <= steps; s += U) {
#pragma GCC unroll 8
    for (int u = 0; u < U; ++u) step(u, (s + u) * kLanes<A>);
  }
  for (; s < steps; ++s) step(0, s * kLanes<A>);
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j <= i; ++j) {
      const int pair = i * (i + 1) / 2 + j;
      V total = sum[0][pair];
#pragma GCC unroll 8
      for (int u = 1; u < U; ++u) total += sum[u][pair];
      fold_lanes<A>(total, sums + pair_index(first + i, first + j) * kLanes<double>);
    }
  }
}

// Pairs between kRows rows from `first` and kTile rows from `second`, second < first.
template <class S, int kRows>
MTLKERNELS_NOINLINE void square_tile(const S* const* rows, int64_t first, int64_t second, int64_t steps, double* sums,
                                     const Ahead& ahead) {
  using A = accumulator_t<S>;
  using V = typename Vector<A>::type;
  const S* x[kRows];
  const S* y[kTile];
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) x[i] = rows[first + i];
#pragma GCC unroll 8
  for (int j = 0; j < kTile; ++j) y[j] = rows[second + j];
  V sum[kRows][kTile] = {};
  for (int64_t s = 0; s < steps; ++s) {
    const int64_t at = s * kLanes<A>;
    V yj[kTile];
    ahead.fetch(s);
#pragma GCC unroll 8
    for (int j = 0; j < kTile; ++j) yj[j] = load(y[j] + at);
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
      const V xi = load(x[i] + at);
#pragma GCC unroll 8
      for (int j = 0; j < kTile; ++j) sum[i][j] += xi * yj[j];
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < kTile; ++j)
      fold_lanes<A>(sum[i][j], sums + pair_index(first + i, second + j) * kLanes<double>);
  }
}

template <class S, bool kAhead>
void triangle(const S* const* rows, int64_t first, int64_t count, int64_t steps, double* sums, const Ahead& ahead) {
  switch (count) {
    case 1: return triangle_tile<S, 1, 8, kAhead>(rows, first, steps, sums, ahead);
    case 2: return triangle_tile<S, 2, 4, kAhead>(rows, first, steps, sums, ahead);
    case 3: return triangle_tile<S, 3, 2, kAhead>(rows, first, steps, sums, ahead);
    case 4: return triangle_tile<S, 4, 1, kAhead>(rows, first, steps, sums, ahead);
  }
  if constexpr (kWholeTriangle > 4 && !kAhead) {
    switch (count) {
      case 5: return triangle_tile<S, 5, 1, kAhead>(rows, first, steps, sums, ahead);
      case 6: return triangle_tile<S, 6, 1, kAhead>(rows, first, steps, sums, ahead);
      case 7: return triangle_tile<S, 7, 1, kAhead>(rows, first, steps, sums, ahead);
      case 8: return triangle_tile<S, 8, 1, kAhead>(rows, first, steps, sums, ahead);
    }
  }
}

template <class S>
void square(const S* const* rows, int64_t first, int64_t count, int64_t second, int64_t steps, double* sums,
            const Ahead& ahead) {
  switch (count) {
    case 1: return square_tile<S, 1>(rows, first, second, steps, sums, ahead);
    case 2: return square_tile<S, 2>(rows, first, second, steps, sums, ahead);
    case 3: return square_tile<S, 3>(rows, first, second, steps, sums, ahead);
    case 4: return square_tile<S, 4>(rows, first, second, steps, sums, ahead);
  }
}

// Adds all pairs of one chunk: `steps` vectors a row, padded with zeros by the caller. sums: pairs x lanes of double.
// ahead: the rows of the run after it.
template <class S>
void chunk_gram(const S* const* rows, int64_t tasks, int64_t steps, double* sums, AheadRows ahead) {
  if (tasks <= kWholeTriangle) return triangle<S, false>(rows, 0, tasks, steps, sums, {});
  for (int64_t i = 0; i < tasks; i += kTile) {
    const int64_t count = std::min<int64_t>(kTile, tasks - i);
    for (int64_t j = 0; j < i; j += kTile) square(rows, i, count, j, steps, sums, ahead.take());
    triangle<S, true>(rows, i, count, steps, sums, ahead.take());
  }
}

// The memory of one call: see gram_scratch_bytes.
struct GramScratch {
  double* sums;         // pairs x lanes, vector-aligned
  char* stage;          // tasks x kStageStride
  const void** rows;    // tasks

  GramScratch(void* memory, int64_t tasks)
      : sums(static_cast<double*>(memory)),
        stage(reinterpret_cast<char*>(sums + num_pairs(tasks) * kLanes<double>)),
        rows(reinterpret_cast<const void**>(stage + tasks * kStageStride)) {}
};

// n elements of type S as A, zero-padded to whole vectors.
template <class A, class S>
void stage_row(const S* row, int64_t n, int64_t padded, A* stage) {
  if constexpr (std::is_same_v<A, S>) {
    std::copy(row, row + n, stage);
  } else if constexpr (std::is_same_v<A, float>) {
    widen_run(row, n, stage);
  } else if constexpr (std::is_same_v<S, float>) {
    for (int64_t k = 0; k < n; ++k) stage[k] = static_cast<A>(row[k]);
  } else {
    for (int64_t k = 0; k < n; ++k) stage[k] = static_cast<A>(widen(row[k]));
  }
  std::fill(stage + n, stage + padded, A{0});
}

// The whole call with accumulators of type A: fills scratch.sums.
template <class A, class S>
void accumulate(const void* const* rows, int64_t tasks, int64_t length, const GramScratch& scratch) {
  // Up to kStreams tasks rows are read in place in long runs: one pass, nothing to keep cached. With more a row is read
  // once for each tile: runs are short enough for the rows of several tiles to stay in the first-level cache.
  const bool in_place = std::is_same_v<A, accumulator_t<S>> && (sizeof(S) == sizeof(A) || tasks <= kInPlaceNarrow);
  const int64_t run = !in_place ? kChunk<A> : tasks <= kStreams ? kLongRun * kChunk<A> : kChunk<A> / 2;
  std::fill(scratch.sums, scratch.sums + num_pairs(tasks) * kLanes<double>, 0.0);
  for (int64_t begin = 0; begin < length;) {
    const int64_t whole = (length - begin) / kLanes<A> * kLanes<A>;
    const bool direct = in_place && whole > 0;
    const int64_t n = direct ? std::min(run, whole) : std::min(kChunk<A>, length - begin);
    const int64_t steps = (n + kLanes<A> - 1) / kLanes<A>;
    const int64_t after = begin + 2 * n <= length ? begin + n : begin;
    const int64_t size = sizeof(S);
    const AheadRows ahead{rows, tasks, after * size, tasks <= kStreams ? 0 : kLanes<A> * size};
    for (int64_t t = 0; t < tasks; ++t) {
      const S* row = static_cast<const S*>(rows[t]) + begin;
      A* stage = reinterpret_cast<A*>(scratch.stage + t * kStageStride);
      if (!direct) stage_row(row, n, steps * kLanes<A>, stage);
      scratch.rows[t] = direct ? static_cast<const void*>(row) : stage;
    }
    if (direct) {
      if constexpr (std::is_same_v<A, accumulator_t<S>>)
        chunk_gram(reinterpret_cast<const S* const*>(scratch.rows), tasks, steps, scratch.sums, ahead);
    } else {
      chunk_gram(reinterpret_cast<const A* const*>(scratch.rows), tasks, steps, scratch.sums, ahead);
    }
    begin += n;
  }
}

// Adds the lanes of every pair up, in place: sums[pair].
inline void reduce_lanes(double* sums, int64_t pairs) {
  for (int64_t p = 0; p < pairs; ++p) {
    double* lane = sums + p * kLanes<double>;
    double total = 0;
    for (int l = 0; l < kLanes<double>; ++l) total += lane[l];
    sums[p] = total;
  }
}

// float32 squares leave the range of float32 for elements beyond 1e19 or below 1e-17. A run in which a norm says so
// (zero included: it may be an underflow) is done again with float64 products, so K stays scale-free and finite.
inline bool leaves_float_range(const double* sums, int64_t tasks) {
  for (int64_t i = 0; i < tasks; ++i) {
    const double square = sums[pair_index(i, i)];
    if (!(square > 1e-30 && square < 1e38)) return true;
  }
  return false;
}

template <class S>
void gram(const void* const* rows, int64_t tasks, int64_t length, double* partial, void* memory) {
  const GramScratch scratch(memory, tasks);
  const int64_t pairs = num_pairs(tasks);
  accumulate<accumulator_t<S>, S>(rows, tasks, length, scratch);
  reduce_lanes(scratch.sums, pairs);
  if (std::is_same_v<accumulator_t<S>, float> && leaves_float_range(scratch.sums, tasks)) {
    accumulate<double, S>(rows, tasks, length, scratch);
    reduce_lanes(scratch.sums, pairs);
  }
  for (int64_t p = 0; p < pairs; ++p) partial[p] += scratch.sums[p];
}
