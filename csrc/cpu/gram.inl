// Gram matrix of T rows: K_ij = sum_k x_i[k] x_j[k], lower triangle, one pass, in float64: products of float32, bfloat16 and
// float16 elements are exact there.
//
// Order: a lane adds at most kFold products of a pair in a register, kLevelSteps / kFold of those in memory; then the lanes
// are added in a tree, and the rest is compensated (kernels.h). It depends on the lengths alone. gram_noise.h bounds the
// error. T (T + 1) / 2 multiply-adds for T loads: bound by memory up to T = 8 or so, by arithmetic beyond.

// The widest triangle that is accumulated in one pass over the rows, and the square tile beyond it. Of the 36
// accumulators of eight rows a few live in memory: that costs less than reading a stream of rows twice.
constexpr int kWholeTriangle = MTLKERNELS_VECTOR_BYTES == 64 ? 6 : 4;
constexpr int kTile = MTLKERNELS_VECTOR_BYTES == 64 ? 4 : 3;
constexpr int64_t kStep = kLanes<float>;  // elements of a row at a time: two vectors of double
constexpr int64_t kFold = 32;             // products that a lane of a register adds up
constexpr int64_t kLevelSteps = 256;      // steps between two additions of lanes
// Every tile widens the rows anew, 16-bit ones of up to this many tasks: that costs more instructions than float32.
constexpr int64_t kInPlaceNarrow = 16;
constexpr int64_t kStreams = 8;  // rows whose next run square tiles leave to the hardware

// Two rows' part of the run after this one, fetched into the second-level cache by the way: tiles compute, and the rows
// of many tasks are more streams than hardware follows, each of which it loses at the end of a page.
struct Ahead {
  uintptr_t first, second;
  int64_t size;  // of an element

  MTLKERNELS_INLINE void fetch(int64_t element) const {
    __builtin_prefetch(reinterpret_cast<const void*>(first + element * size), 0, 2);
    __builtin_prefetch(reinterpret_cast<const void*>(second + element * size), 0, 2);
  }
};

// Hands the rows of a run out to its tiles, two at a time; from three tiles a side on all rows have their turn.
struct AheadRows {
  const void* const* rows;
  int64_t tasks, offset, size;
  int64_t next = 0;

  uintptr_t row() {
    const auto at = reinterpret_cast<uintptr_t>(rows[next]) + offset;
    next = next + 1 < tasks ? next + 1 : 0;
    return at;
  }
  Ahead take() {
    const uintptr_t first = row();
    return {first, row(), size};
  }
};

MTLKERNELS_INLINE Doubles& level_of(double* level, int64_t i, int64_t j) {
  return *reinterpret_cast<Doubles*>(level + pair_index(i, j) * kLanes<double>);
}

// Pairs inside kRows rows. U independent copies hide the latency of the multiply-add where the pairs alone cannot.
template <class S, int kRows, int U, bool kAhead>
MTLKERNELS_NOINLINE void triangle_tile(const S* const* rows, int64_t first, int64_t steps, double* level,
                                       const Ahead& ahead) {
  constexpr int kPairs = kRows * (kRows + 1) / 2;
  constexpr int64_t kTogether = U > 1 ? U / 2 : 1;  // steps that fill all copies
  const S* x[kRows];
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) x[i] = rows[first + i];
  for (int64_t s = 0; s < steps;) {
    const int64_t end = std::min(steps, s + kFold * U / 2);
    Doubles sum[U][kPairs] = {};
    auto step = [&](int u, int64_t at) __attribute__((always_inline)) {
      if constexpr (kAhead) {
        ahead.fetch(at);
      } else {
#pragma GCC unroll 8
        for (int i = 0; i < kRows; ++i) {
          fetch_ahead(x[i] + at);
          if constexpr (sizeof(S) == 8) fetch_ahead(x[i] + at + kLanes<double>);
        }
      }
      auto add = [&](auto& to, auto half) __attribute__((always_inline)) {
        Doubles value[kRows];
#pragma GCC unroll 8
        for (int i = 0; i < kRows; ++i) value[i] = load_half<half>(x[i] + at);
#pragma GCC unroll 8
        for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 8
          for (int j = 0; j <= i; ++j) to[i * (i + 1) / 2 + j] += value[i] * value[j];
        }
      };
      add(sum[u], std::integral_constant<int, 0>{});
      add(sum[U > 1 ? u + 1 : 0], std::integral_constant<int, 1>{});
    };
    for (; s + kTogether <= end; s += kTogether) {
#pragma GCC unroll 4
      for (int u = 0; u < kTogether; ++u) step(2 * u, (s + u) * kStep);
    }
    for (; s < end; ++s) step(0, s * kStep);
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 8
      for (int j = 0; j <= i; ++j) {
        const int pair = i * (i + 1) / 2 + j;
        Doubles total = sum[0][pair];
#pragma GCC unroll 8
        for (int u = 1; u < U; ++u) total += sum[u][pair];
        level_of(level, first + i, first + j) += total;
      }
    }
  }
}

// Pairs between kRows rows from `first` and kTile rows from `second`, second < first.
template <class S, int kRows>
MTLKERNELS_NOINLINE void square_tile(const S* const* rows, int64_t first, int64_t second, int64_t steps, double* level,
                                     const Ahead& ahead) {
  const S* x[kRows];
  const S* y[kTile];
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) x[i] = rows[first + i];
#pragma GCC unroll 8
  for (int j = 0; j < kTile; ++j) y[j] = rows[second + j];
  for (int64_t s = 0; s < steps;) {
    const int64_t end = std::min(steps, s + kFold / 2);
    Doubles sum[kRows][kTile] = {};
    for (; s < end; ++s) {
      const int64_t at = s * kStep;
      ahead.fetch(at);
      auto add = [&](auto half) __attribute__((always_inline)) {
        Doubles yj[kTile];
#pragma GCC unroll 8
        for (int j = 0; j < kTile; ++j) yj[j] = load_half<half>(y[j] + at);
#pragma GCC unroll 8
        for (int i = 0; i < kRows; ++i) {
          const Doubles xi = load_half<half>(x[i] + at);
#pragma GCC unroll 8
          for (int j = 0; j < kTile; ++j) sum[i][j] += xi * yj[j];
        }
      };
      add(std::integral_constant<int, 0>{});
      add(std::integral_constant<int, 1>{});
    }
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 8
      for (int j = 0; j < kTile; ++j) level_of(level, first + i, second + j) += sum[i][j];
    }
  }
}

template <class S, bool kAhead>
void triangle(const S* const* rows, int64_t first, int64_t count, int64_t steps, double* level, const Ahead& ahead) {
  switch (count) {
    case 1: return triangle_tile<S, 1, 8, kAhead>(rows, first, steps, level, ahead);
    case 2: return triangle_tile<S, 2, 4, kAhead>(rows, first, steps, level, ahead);
    case 3: return triangle_tile<S, 3, 2, kAhead>(rows, first, steps, level, ahead);
    case 4: return triangle_tile<S, 4, 1, kAhead>(rows, first, steps, level, ahead);
  }
  if constexpr (kWholeTriangle > 4 && !kAhead) {
    switch (count) {
      case 5: return triangle_tile<S, 5, 1, kAhead>(rows, first, steps, level, ahead);
      case 6: return triangle_tile<S, 6, 1, kAhead>(rows, first, steps, level, ahead);
      case 7: return triangle_tile<S, 7, 1, kAhead>(rows, first, steps, level, ahead);
      case 8: return triangle_tile<S, 8, 1, kAhead>(rows, first, steps, level, ahead);
    }
  }
}

template <class S>
void square(const S* const* rows, int64_t first, int64_t count, int64_t second, int64_t steps, double* level,
            const Ahead& ahead) {
  switch (count) {
    case 1: return square_tile<S, 1>(rows, first, second, steps, level, ahead);
    case 2: return square_tile<S, 2>(rows, first, second, steps, level, ahead);
    case 3: return square_tile<S, 3>(rows, first, second, steps, level, ahead);
    case 4: return square_tile<S, 4>(rows, first, second, steps, level, ahead);
  }
}

// Adds all pairs of a run. ahead: the rows of the run after it.
template <class S>
void run_gram(const S* const* rows, int64_t tasks, int64_t steps, double* level, AheadRows ahead) {
  if (tasks <= kWholeTriangle) return triangle<S, false>(rows, 0, tasks, steps, level, {});
  for (int64_t i = 0; i < tasks; i += kTile) {
    const int64_t count = std::min<int64_t>(kTile, tasks - i);
    for (int64_t j = 0; j < i; j += kTile) square(rows, i, count, j, steps, level, ahead.take());
    triangle<S, true>(rows, i, count, steps, level, ahead.take());
  }
}

// The memory of one call: see gram_scratch_bytes.
struct GramScratch {
  double* level;      // pairs x lanes, vector-aligned
  char* stage;        // tasks x kStageStride
  const void** rows;  // tasks

  GramScratch(void* memory, int64_t tasks)
      : level(static_cast<double*>(memory)), stage(reinterpret_cast<char*>(level + num_pairs(tasks) * kLanes<double>)),
        rows(reinterpret_cast<const void**>(stage + tasks * kStageStride)) {}
};

// n elements as they are, or as float64, followed by zeros up to whole steps.
template <class E, class S>
const E* stage_row(const S* row, int64_t n, char* memory) {
  E* const stage = reinterpret_cast<E*>(memory);
  const int64_t whole = n / kStep * kStep, padded = (n + kStep - 1) / kStep * kStep;
  if constexpr (std::is_same_v<E, S>) {
    std::memcpy(stage, row, n * sizeof(S));
  } else {
    alignas(64) S rest[kStep] = {};
    std::memcpy(rest, row + whole, (n - whole) * sizeof(S));
    for (int64_t k = 0; k < padded; k += kStep) {
      const S* const from = k < whole ? row + k : rest;
      *reinterpret_cast<Vector<double>::loaded*>(stage + k) = load_half<0>(from);
      *reinterpret_cast<Vector<double>::loaded*>(stage + k + kLanes<double>) = load_half<1>(from);
    }
    return stage;
  }
  std::memset(stage + n, 0, (padded - n) * sizeof(E));
  return stage;
}

// Moves the lanes' sums of every pair into `partial`, and leaves zeros.
inline void flush_level(double* level, int64_t pairs, CompensatedSum* partial) {
  for (int64_t p = 0; p < pairs; ++p) {
    double* const lane = level + p * kLanes<double>;
    double sum[kLanes<double>];
#pragma GCC unroll 8
    for (int l = 0; l < kLanes<double>; ++l) sum[l] = lane[l], lane[l] = 0;
#pragma GCC unroll 4
    for (int half = kLanes<double> / 2; half > 0; half /= 2) {
#pragma GCC unroll 4
      for (int l = 0; l < half; ++l) sum[l] += sum[l + half];
    }
    partial[p].add(sum[0]);
  }
}

template <class S>
void gram(const void* const* rows, int64_t tasks, int64_t length, CompensatedSum* partial, void* memory) {
  const GramScratch scratch(memory, tasks);
  const int64_t pairs = num_pairs(tasks), size = sizeof(S);
  // A few tasks' rows are read in place in long runs: one pass, nothing to keep cached. With more a row is read once for
  // each tile, in runs short enough for the rows of several tiles to stay in the first-level cache, and is widened once
  // where there are many.
  const bool one_pass = tasks <= kWholeTriangle, in_place = sizeof(S) > 2 || tasks <= kInPlaceNarrow;
  const int64_t run = one_pass ? kLevelSteps * kStep : kChunk<double> / (in_place ? 1 : 2);
  std::fill(scratch.level, scratch.level + pairs * kLanes<double>, 0.0);
  int64_t waiting = 0;  // steps since the lanes were added up
  for (int64_t begin = 0; begin < length;) {
    const int64_t whole = (length - begin) / kStep * kStep;
    const bool direct = in_place && whole > 0;
    const int64_t n = std::min(run, direct ? whole : length - begin);
    const int64_t steps = (n + kStep - 1) / kStep;
    const int64_t after = begin + 2 * n <= length ? begin + n : begin;
    const AheadRows ahead{rows, tasks, after * size, tasks <= kStreams ? 0 : size};
    for (int64_t t = 0; t < tasks; ++t) {
      const S* row = static_cast<const S*>(rows[t]) + begin;
      char* const stage = scratch.stage + t * kStageStride;
      if (direct) {
        scratch.rows[t] = row;
      } else if (in_place) {
        scratch.rows[t] = stage_row<S>(row, n, stage);
      } else {
        scratch.rows[t] = stage_row<double>(row, n, stage);
      }
    }
    if (in_place) {
      run_gram(reinterpret_cast<const S* const*>(scratch.rows), tasks, steps, scratch.level, ahead);
    } else {
      run_gram(reinterpret_cast<const double* const*>(scratch.rows), tasks, steps, scratch.level, ahead);
    }
    begin += n;
    waiting += steps;
    if (waiting >= kLevelSteps || begin == length) {
      flush_level(scratch.level, pairs, partial);
      waiting = 0;
    }
  }
}
