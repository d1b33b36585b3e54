// The Gram matrix of T rows of gradients on the GPU: K_ij = sum_k x_i[k] x_j[k].
//
// Bytes: every element once for T <= 8; beyond, rows are taken eight at a time (two tiles of four) and read once for
// each pair of tiles, mostly from the second-level cache. Order: a lane's products in a chain, lanes in a tree, runs of
// a warp, warps, then segments and groups of segments in trees, in float64. All of it follows from the sizes and the
// tables' capacity, nothing from the machine, the alignment or the timing: repeated calls give the same bits.
// One launch where the list fits one table: the segments are added up by the last block to end (gram_sums.cuh).
#pragma once

#include "gram_sums.cuh"

namespace mtlkernels::cuda {

constexpr int kFlush = 4;  // chunks a warp sums in the accumulator's type: 4096 products, 128 a lane on a GPU

// sum[pair] += products of one chunk. kPlain: all rows present, whole and on 16-byte boundaries.
// An absent row has no part in any pair: not even 0 * inf.
template <bool kPlain, class S, int kRows>
__device__ void add_chunk(const S* const (&x)[kRows], unsigned present, int length, bool aligned,
                          accumulator_t<S> (&sum)[kRows * (kRows + 1) / 2]) {
  using A = accumulator_t<S>;
  constexpr int kStep = Pack<S>::kCount * kWarp;
  [[maybe_unused]] constexpr int kUnroll = !kPlain || kRows > 4 ? 1 : kRows > 2 ? 2 : 4;
  const int steps = kPlain ? kChunk / kStep : (length + kStep - 1) / kStep;
#pragma unroll kUnroll
  for (int s = 0; s < steps; ++s) {
    const int at = s * kStep + lane_of_thread() * Pack<S>::kCount;
    Pack<S> pack[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if constexpr (kPlain) {
        pack[r] = read_whole(x[r] + at);
      } else {
        pack[r] = read_pack(x[r], at, present >> r & 1 ? length : 0, aligned);
      }
    }
#pragma unroll
    for (int e = 0; e < Pack<S>::kCount; ++e) {
      A value[kRows];
#pragma unroll
      for (int r = 0; r < kRows; ++r) value[r] = widen(pack[r].element[e]);
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
#pragma unroll
        for (int j = 0; j <= i; ++j) {
          A& total = sum[i * (i + 1) / 2 + j];
          if (kPlain || (present >> i & present >> j & 1)) total = fma(value[i], value[j], total);
        }
      }
    }
  }
}

// Whether any element of a task's run is not zero, a NaN included.
template <class S, int kWords>
__device__ bool any_in_run(Walk<kWords> walk, int chunks, int task) {
  bool found = false;
  for (int c = 0; c < chunks; ++c, walk.skip(kWarps)) {
    const S* row = walk.table->template row<S>(walk.param, task);
    if (!row) continue;
    for (int k = lane_of_thread(); k < walk.length(); k += kWarp) found = found || widen(read(row + walk.begin + k)) != 0;
  }
  return __any_sync(0xffffffffu, found);
}

// One pair of tasks over a warp's run, with float64 products. Products with a zero are left out unless they are NaN:
// float64 is slow on many GPUs.
template <class S, int kWords>
__device__ double wide_product(Walk<kWords> walk, int chunks, int i, int j) {
  double total = 0;
  for (int c = 0; c < chunks; ++c, walk.skip(kWarps)) {
    const S *x = walk.table->template row<S>(walk.param, i), *y = walk.table->template row<S>(walk.param, j);
    if (!x || !y) continue;
    for (int k = lane_of_thread(); k < walk.length(); k += kWarp) {
      const auto a = widen(read(x + walk.begin + k)), b = widen(read(y + walk.begin + k));
      if ((a != 0 && b != 0) || a * b != 0) total = fma(static_cast<double>(a), static_cast<double>(b), total);
    }
  }
  return warp_sum(total);
}

// Which rows' squares left float32's range in the run (elements beyond 1e19 or below 1e-17), by every lane alike. A sum
// that is zero may be an underflow or true: the elements tell.
template <class S, int kRows, int kWords>
__device__ unsigned rows_out_of_range(const Walk<kWords>& start, int chunks, const TilePair& tiles, unsigned seen,
                                      const float (&sum)[kRows * (kRows + 1) / 2]) {
  unsigned rows = 0;
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const float square = sum[r * (r + 1) / 2 + r];
    if ((seen >> r & 1) && !(square > 1e-30f && square < 1e38f)) rows |= 1u << r;
  }
  for (int r = 0; r < kRows && rows; ++r)
    if ((rows >> r & 1) && !any_in_run<S>(start, chunks, tiles.task(r))) rows &= ~(1u << r);
  return rows;
}

// Does the pairs of these rows again with float64 products, onto what the warp has.
template <class S, int kRows, int kWords>
__device__ __noinline__ void add_wide(const Walk<kWords>& start, int chunks, const TilePair& tiles, unsigned seen,
                                      unsigned rows, double* total) {
  for (int i = 0; i < kRows; ++i) {
    for (int j = 0; j <= i; ++j) {
      if (!(seen >> i & seen >> j & 1) || !((rows >> i | rows >> j) & 1)) continue;
      const double product = wide_product<S>(start, chunks, tiles.task(i), tiles.task(j));
      if (lane_of_thread() == 0) total[i * (i + 1) / 2 + j] += product;
    }
  }
}

// Moves the warp's sums of a run into its float64 totals.
template <class S, int kRows, int kWords>
__device__ void flush(const Walk<kWords>& start, int chunks, const TilePair& tiles, unsigned seen,
                      accumulator_t<S> (&sum)[kRows * (kRows + 1) / 2], double* total) {
  constexpr int kPairs = kRows * (kRows + 1) / 2;
#pragma unroll
  for (int p = 0; p < kPairs; ++p) sum[p] = warp_sum(sum[p]);
  unsigned rows = 0;
  if constexpr (sizeof(accumulator_t<S>) == sizeof(float))
    rows = rows_out_of_range<S, kRows>(start, chunks, tiles, seen, sum);
  if (lane_of_thread() == 0) {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
#pragma unroll
      for (int j = 0; j <= i; ++j)
        if (!((rows >> i | rows >> j) & 1)) total[i * (i + 1) / 2 + j] += static_cast<double>(sum[i * (i + 1) / 2 + j]);
    }
  }
  if (rows) add_wide<S, kRows>(start, chunks, tiles, seen, rows, total);
#pragma unroll
  for (int p = 0; p < kPairs; ++p) sum[p] = 0;
}

// Blocks on a multiprocessor that registers must leave room for: fewer where the sums take more of them.
template <class S>
constexpr int gram_blocks(int rows) {
  return sizeof(accumulator_t<S>) == 8 ? (rows > 4 ? 2 : 3) : rows > 6 ? 3 : 4;
}

// Grid: (segments of the portion, pairs of tiles). kRows: T where T < 8, else 8.
template <class S, int kRows, int kWords>
__global__ void __launch_bounds__(kThreads, gram_blocks<S>(kRows))
    gram_kernel(const __grid_constant__ Table<kWords> table, const Portion portion, const GramPartials partials) {
  using A = accumulator_t<S>;
  constexpr int kPairs = kRows * (kRows + 1) / 2;
  __shared__ double totals[kWarps][kPairs];
  const int64_t segment = portion.first + blockIdx.x;
  const TilePair tiles(static_cast<int>(blockIdx.y));
  double* total = totals[warp_of_thread()];
  for (int p = lane_of_thread(); p < kPairs; p += kWarp) total[p] = 0;
  __syncwarp();

  A sum[kPairs];
#pragma unroll
  for (int p = 0; p < kPairs; ++p) sum[p] = 0;
  Walk<kWords> walk(table, portion, segment);
  walk.skip(warp_of_thread());
  Walk<kWords> start = walk;  // of the run
  int chunks = 0;
  unsigned seen = 0;
  for (; walk.more(); walk.skip(kWarps)) {
    if (chunks == kFlush) {
      flush<S, kRows>(start, chunks, tiles, seen, sum, total);
      start = walk;
      chunks = 0;
      seen = 0;
    }
    const S* x[kRows];
    unsigned present = 0;
    bool aligned = true;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int task = tiles.task(r);
      const S* row = task < table.tasks ? table.template row<S>(walk.param, task) : nullptr;
      present |= row ? 1u << r : 0u;
      aligned = aligned && is_aligned(row);
      x[r] = row ? row + walk.begin : nullptr;
    }
    const int length = walk.length();
    if (aligned && length == kChunk && present == (1u << kRows) - 1) {
      add_chunk<true>(x, present, length, aligned, sum);
    } else {
      add_chunk<false>(x, present, length, aligned, sum);
    }
    seen |= present;
    ++chunks;
  }
  if (chunks) flush<S, kRows>(start, chunks, tiles, seen, sum, total);
  __syncthreads();

  for (int p = static_cast<int>(threadIdx.x); p < kPairs; p += kThreads) {
    const Pair pair(p);
    if (!tiles.writes(pair.i, pair.j) || tiles.task(pair.i) >= table.tasks) continue;
    double* slot = partials.slot + pair_index(tiles.task(pair.i), tiles.task(pair.j)) * partials.segments + segment;
    double all = portion.continued && segment == portion.first ? *slot : 0.0;
    for (int w = 0; w < kWarps; ++w) all += totals[w][p];
    *slot = all;
  }
  if (partials.ticket >= 0) finish_in_last_block<kRows>(tiles, partials, table.tasks);
}

// Doubles of workspace that gram needs.
inline int64_t gram_workspace(const Plan& plan, int64_t tasks) { return plan.segments * num_pairs(tasks); }

// Counters that gram needs to be one launch, or 0 where it is not: the list does not fit one table, or there is none.
inline int64_t gram_tickets(const Plan& plan, int64_t tasks) {
  if (plan.segments == 0 || !fits_one_table(plan, tasks)) return 0;
  return gram_tile_pairs(tasks) * (1 + (plan.segments + kGroup - 1) / kGroup);
}

template <class S, int kRows>
void gram_rows(const Plan& plan, const std::vector<const void*>& rows, int64_t tasks, const GramPartials& partials,
               Stream stream) {
  const auto pairs_of_tiles = static_cast<unsigned>(gram_tile_pairs(tasks));
  for_each_table(plan, rows, tasks, [&]<int kWords>(const Table<kWords>& table, const Portion& portion) {
    const dim3 grid(static_cast<unsigned>(portion.last - portion.first), pairs_of_tiles);
    launch(gram_kernel<S, kRows, kWords>, grid, kThreads, stream, table, portion, partials);
  });
}

// K: (tasks, tasks) float64. rows: tasks * P task-major, null where absent. workspace: gram_workspace doubles. ticket: the
// first of gram_tickets counters that no launch at the same time uses, or -1. The bits do not depend on it.
template <class S>
void gram(const Plan& plan, const std::vector<const void*>& rows, int64_t tasks, double* K, double* workspace, int ticket,
          Stream stream) {
  const GramPartials partials{workspace, plan.segments, K, ticket};
  switch (tasks) {
    case 1: gram_rows<S, 1>(plan, rows, tasks, partials, stream); break;
    case 2: gram_rows<S, 2>(plan, rows, tasks, partials, stream); break;
    case 3: gram_rows<S, 3>(plan, rows, tasks, partials, stream); break;
    case 4: gram_rows<S, 4>(plan, rows, tasks, partials, stream); break;
    case 5: gram_rows<S, 5>(plan, rows, tasks, partials, stream); break;
    case 6: gram_rows<S, 6>(plan, rows, tasks, partials, stream); break;
    case 7: gram_rows<S, 7>(plan, rows, tasks, partials, stream); break;
    default: gram_rows<S, 8>(plan, rows, tasks, partials, stream);
  }
  if (ticket >= 0) return;
  const dim3 grid(static_cast<unsigned>((num_pairs(tasks) + kWarps - 1) / kWarps));
  launch(gram_finish_kernel, grid, kThreads, stream, partials, static_cast<int>(tasks));
}

}  // namespace mtlkernels::cuda
