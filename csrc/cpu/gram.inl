// Gram matrix of T rows: K_ij = sum_k x_i[k] x_j[k], lower triangle, one pass.
//
// Rows are walked in chunks that stay in the first-level cache. Inside a chunk, tiles of pairs accumulate in vector
// registers in the accumulator's type (at most kChunk products a sum, kChunk / kLanes a lane); lanes and chunks are
// added in float64, in an order that depends on the lengths alone. T T (T + 1) / 2 multiply-adds for T loads.

// The widest triangle whose accumulators fit the registers with an operand to spare, and the square tile beyond it.
constexpr int kWholeTriangle = MTLKERNELS_VECTOR_BYTES == 64 ? 7 : 4;
constexpr int kTile = MTLKERNELS_VECTOR_BYTES == 64 ? 4 : 3;

// Pairs inside A rows. U independent copies hide the latency of the multiply-add where A(A+1)/2 alone cannot.
template <class A, int kRows, int U>
MTLKERNELS_NOINLINE void triangle_tile(const A* const* rows, int64_t first, int64_t steps, double* out) {
  using V = typename Vector<A>::type;
  constexpr int kPairs = kRows * (kRows + 1) / 2;
  const A* x[kRows];
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) x[i] = rows[first + i];
  V sum[U][kPairs] = {};
  int64_t s = 0;
  auto step = [&](int u, int64_t at) __attribute__((always_inline)) {
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
      const V xi = load(x[i] + at);
#pragma GCC unroll 8
      for (int j = 0; j <= i; ++j) sum[u][i * (i + 1) / 2 + j] += xi * load(x[j] + at);
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
      out[pair_index(first + i, first + j)] = sum_lanes<A>(total);
    }
  }
}

// Pairs between kRows rows from `first` and kTile rows from `second`, second < first.
template <class A, int kRows>
MTLKERNELS_NOINLINE void square_tile(const A* const* rows, int64_t first, int64_t second, int64_t steps, double* out) {
  using V = typename Vector<A>::type;
  const A* x[kRows];
  const A* y[kTile];
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) x[i] = rows[first + i];
#pragma GCC unroll 8
  for (int j = 0; j < kTile; ++j) y[j] = rows[second + j];
  V sum[kRows][kTile] = {};
  for (int64_t s = 0; s < steps; ++s) {
    const int64_t at = s * kLanes<A>;
    V yj[kTile];
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
    for (int j = 0; j < kTile; ++j) out[pair_index(first + i, second + j)] = sum_lanes<A>(sum[i][j]);
  }
}

template <class A>
void triangle(const A* const* rows, int64_t first, int64_t count, int64_t steps, double* out) {
  switch (count) {
    case 1: return triangle_tile<A, 1, 8>(rows, first, steps, out);
    case 2: return triangle_tile<A, 2, 4>(rows, first, steps, out);
    case 3: return triangle_tile<A, 3, 2>(rows, first, steps, out);
    case 4: return triangle_tile<A, 4, 1>(rows, first, steps, out);
  }
  if constexpr (kWholeTriangle > 4) {
    switch (count) {
      case 5: return triangle_tile<A, 5, 1>(rows, first, steps, out);
      case 6: return triangle_tile<A, 6, 1>(rows, first, steps, out);
      case 7: return triangle_tile<A, 7, 1>(rows, first, steps, out);
    }
  }
}

template <class A>
void square(const A* const* rows, int64_t first, int64_t count, int64_t second, int64_t steps, double* out) {
  switch (count) {
    case 1: return square_tile<A, 1>(rows, first, second, steps, out);
    case 2: return square_tile<A, 2>(rows, first, second, steps, out);
    case 3: return square_tile<A, 3>(rows, first, second, steps, out);
    case 4: return square_tile<A, 4>(rows, first, second, steps, out);
  }
}

// All pairs of one chunk: `steps` vectors a row, padded with zeros by the caller. out: lower triangle, overwritten.
template <class A>
void chunk_gram(const A* const* rows, int64_t tasks, int64_t steps, double* out) {
  if (tasks <= kWholeTriangle) return triangle(rows, 0, tasks, steps, out);
  for (int64_t i = 0; i < tasks; i += kTile) {
    const int64_t count = std::min<int64_t>(kTile, tasks - i);
    for (int64_t j = 0; j < i; j += kTile) square(rows, i, count, j, steps, out);
    triangle(rows, i, count, steps, out);
  }
}

// float32 squares leave the range of float32 for elements beyond 1e19 or below 1e-17. A chunk in which a norm says so
// (zero included: it may be an underflow) is done again with float64 products, so K stays scale-free and finite.
inline bool leaves_float_range(const double* partial, int64_t tasks) {
  for (int64_t i = 0; i < tasks; ++i) {
    const double square = partial[pair_index(i, i)];
    if (!(square > 1e-30 && square < 1e38)) return true;
  }
  return false;
}

struct GramScratch {
  char* stage;          // tasks x kChunkBytes
  double* partial;      // pairs
  const void** rows;    // tasks

  GramScratch(void* memory, int64_t tasks)
      : stage(static_cast<char*>(memory)),
        partial(reinterpret_cast<double*>(stage + tasks * kChunkBytes)),
        rows(reinterpret_cast<const void**>(partial + num_pairs(tasks))) {}
};

// Rows [begin, begin + n) of type S as type A, zero-padded to whole vectors; in place where nothing has to change.
template <class A, class S>
int64_t stage_chunk(const void* const* rows, int64_t tasks, int64_t begin, int64_t n, const GramScratch& scratch) {
  const int64_t steps = (n + kLanes<A> - 1) / kLanes<A>;
  const int64_t padded = steps * kLanes<A>;
  for (int64_t t = 0; t < tasks; ++t) {
    const S* row = static_cast<const S*>(rows[t]) + begin;
    if constexpr (std::is_same_v<A, S>) {
      if (padded == n) {
        scratch.rows[t] = row;
        continue;
      }
    }
    A* stage = reinterpret_cast<A*>(scratch.stage + t * kChunkBytes);
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
    scratch.rows[t] = stage;
  }
  return steps;
}

template <class A, class S>
void add_chunk_gram(const void* const* rows, int64_t tasks, int64_t begin, int64_t n, double* partial,
                    const GramScratch& scratch) {
  for (int64_t done = 0; done < n; done += kChunk<A>) {
    const int64_t steps = stage_chunk<A, S>(rows, tasks, begin + done, std::min(kChunk<A>, n - done), scratch);
    chunk_gram(reinterpret_cast<const A* const*>(scratch.rows), tasks, steps, scratch.partial);
    if constexpr (std::is_same_v<A, float>) {
      if (leaves_float_range(scratch.partial, tasks)) {
        add_chunk_gram<double, S>(rows, tasks, begin + done, std::min(kChunk<A>, n - done), partial, scratch);
        continue;
      }
    }
    for (int64_t p = 0; p < num_pairs(tasks); ++p) partial[p] += scratch.partial[p];
  }
}

template <class S>
void gram(const void* const* rows, int64_t tasks, int64_t length, double* partial, void* scratch) {
  add_chunk_gram<accumulator_t<S>, S>(rows, tasks, 0, length, partial, GramScratch(scratch, tasks));
}
