// The Gram matrix of T rows of gradients on the GPU: K_ij = sum_k x_i[k] x_j[k], in float64: products of float32, bfloat16
// and float16 elements are exact there.
//
// Bytes: every element once for T <= 8; beyond, rows are taken eight at a time (two tiles of four) and read once for
// each pair of tiles, mostly from the second-level cache. Order: at most kChunk / kWarp products of a lane in a chain, lanes
// in a tree, a warp's trees in compensated sums, warps, then segments and groups of segments in trees. All of it follows
// from the sizes and the tables' capacity, nothing from the machine, the alignment or the timing: repeated calls give the
// same bits. gram_noise.h bounds the error.
// One launch where the list fits one table: the segments are added up by the last block to end (gram_sums.cuh).
#pragma once

#include "gram_sums.cuh"

namespace mtlkernels::cuda {

// sum[pair] += products of one chunk. kPlain: all rows present, whole and on 16-byte boundaries.
// An absent row has no part in any pair: not even 0 * inf.
template <bool kPlain, class S, int kRows>
__device__ void add_chunk(const S* const (&x)[kRows], unsigned present, int length, bool aligned,
                          double (&sum)[kRows * (kRows + 1) / 2]) {
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
      double value[kRows];
#pragma unroll
      for (int r = 0; r < kRows; ++r) value[r] = static_cast<double>(widen(pack[r].element[e]));
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
#pragma unroll
        for (int j = 0; j <= i; ++j) {
          double& total = sum[i * (i + 1) / 2 + j];
          if (kPlain || (present >> i & present >> j & 1)) total = fma(value[i], value[j], total);
        }
      }
    }
  }
}

// A warp's compensated sums, spread over its lanes: lane l has those of the pairs l, l + kWarp, ... The rest is what the
// additions round away (Knuth's two-sum).
template <int kPairs>
struct WarpSums {
  static constexpr int kOfLane = (kPairs + kWarp - 1) / kWarp;
  double total[kOfLane] = {}, rest[kOfLane] = {};

  // Adds the lanes' sums of all pairs, and leaves zeros there.
  __device__ void take(double (&sum)[kPairs]) {
    double own[kOfLane] = {};
#pragma unroll
    for (int p = 0; p < kPairs; ++p) {
      const double all = warp_sum(sum[p]);
      if (p % kWarp == lane_of_thread()) own[p / kWarp] = all;
      sum[p] = 0;
    }
#pragma unroll
    for (int n = 0; n < kOfLane; ++n) {
      const double after = total[n] + own[n], part = after - total[n];
      rest[n] += (total[n] - (after - part)) + (own[n] - part);
      total[n] = after;
    }
  }

  // A sum that is infinite stays so: its rest is no number.
  __device__ void write(double* to) const {
#pragma unroll
    for (int n = 0; n < kOfLane; ++n) {
      const int p = n * kWarp + lane_of_thread();
      if (p < kPairs) to[p] = rest[n] - rest[n] == 0 ? total[n] + rest[n] : total[n];
    }
  }
};

// Blocks on a multiprocessor that registers must leave room for: fewer where the sums take more of them.
constexpr int gram_blocks(int rows) { return rows > 4 ? 2 : 3; }

// Grid: (segments of the portion, pairs of tiles). kRows: T where T < 8, else 8.
template <class S, int kRows, int kWords>
__global__ void __launch_bounds__(kThreads, gram_blocks(kRows))
    gram_kernel(const __grid_constant__ Table<kWords> table, const Portion portion, const GramPartials partials) {
  constexpr int kPairs = kRows * (kRows + 1) / 2;
  __shared__ double totals[kWarps][kPairs];
  const int64_t segment = portion.first + blockIdx.x;
  const TilePair tiles(static_cast<int>(blockIdx.y));

  double sum[kPairs];
#pragma unroll
  for (int p = 0; p < kPairs; ++p) sum[p] = 0;
  WarpSums<kPairs> sums;
  int room = kChunk;  // elements until the lanes are added up
  Walk<kWords> walk(table, portion, segment);
  for (walk.skip(warp_of_thread()); walk.more(); walk.skip(kWarps)) {
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
    constexpr int kStep = Pack<S>::kCount * kWarp;
    const int taken = (length + kStep - 1) / kStep * kStep;
    if (taken > room) {
      sums.take(sum);
      room = kChunk;
    }
    room -= taken;
    if (aligned && length == kChunk && present == (1u << kRows) - 1) {
      add_chunk<true>(x, present, length, aligned, sum);
    } else {
      add_chunk<false>(x, present, length, aligned, sum);
    }
  }
  sums.take(sum);
  sums.write(totals[warp_of_thread()]);
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
