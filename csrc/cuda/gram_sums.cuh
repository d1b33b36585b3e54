// What the blocks of a Gram matrix leave of their segments, and how that becomes K: by the last block to end, or by a launch
// of its own, with the same bits.
#pragma once

#include "last_block.cuh"
#include "table.cuh"

namespace mtlkernels::cuda {

constexpr int kTileRows = 4;
constexpr int64_t kMaxGroups = kMaxSegments / kGroup;

struct GramPartials {
  double* slot;      // (pairs, segments)
  int64_t segments;  // of the whole plan
  double* K;
  int ticket;  // the first counter of the launch, or -1: gram_finish_kernel adds the segments up

  __host__ __device__ int64_t groups() const { return (segments + kGroup - 1) / kGroup; }
};

// Up to eight tasks: tile `low` then tile `high`, low < high. For T <= 8 these are the tasks themselves.
struct TilePair {
  int low, high;

  __device__ explicit TilePair(int index) : low(index), high(1) {
    while (low >= high) low -= high++;
  }
  __device__ int task(int row) const { return row < kTileRows ? kTileRows * low + row : kTileRows * (high - 1) + row; }
  // Each pair of tasks is written by one pair of tiles.
  __device__ bool writes(int i, int j) const {
    if (j >= kTileRows) return low == 0;
    if (i < kTileRows) return high == 1;
    return true;
  }
};

// Blocks that a segment takes.
inline int64_t gram_tile_pairs(int64_t tasks) {
  const int64_t tiles = (tasks + kTileRows - 1) / kTileRows;
  return std::max<int64_t>(1, tiles * (tiles - 1) / 2);
}

struct Pair {
  int i, j;

  __device__ explicit Pair(int index) : i(0), j(index) {
    while (j > i) j -= ++i;
  }
};

// A warp a pair of the tiles: store(tasks i and j, its slots, the sum of `count` of them, `step` apart from `first` on).
// A lane adds every kWarp-th up, then the lanes in a tree. kMost: bound on count.
template <int kRows, int64_t kMost, class Store>
__device__ void add_slots(const TilePair& tiles, const GramPartials& partials, int tasks, int64_t first, int64_t count,
                          int64_t step, const Store& store) {
  constexpr int kPairs = kRows * (kRows + 1) / 2, kPairsOfWarp = (kPairs + kWarps - 1) / kWarps;
  double sum[kPairsOfWarp];
#pragma unroll
  for (int n = 0; n < kPairsOfWarp; ++n) {  // all loads are under way before the first is waited for
    const int p = n * kWarps + warp_of_thread();
    const Pair pair(p);
    const bool ours = p < kPairs && tiles.writes(pair.i, pair.j) && tiles.task(pair.i) < tasks;
    const double* slot = partials.slot + pair_index(tiles.task(pair.i), tiles.task(pair.j)) * partials.segments + first;
    sum[n] = 0;
#pragma unroll
    for (int64_t k = lane_of_thread(); k < kMost; k += kWarp)
      if (ours && k < count) sum[n] += __ldcg(slot + k * step);
  }
#pragma unroll
  for (int n = 0; n < kPairsOfWarp; ++n) {
    const double total = warp_sum(sum[n]);
    const int p = n * kWarps + warp_of_thread();
    const Pair pair(p);
    const int i = tiles.task(pair.i), j = tiles.task(pair.j);
    if (lane_of_thread() == 0 && p < kPairs && tiles.writes(pair.i, pair.j) && i < tasks)
      store(i, j, partials.slot + pair_index(i, j) * partials.segments, total);
  }
}

// K from what all blocks of the grid have left in their slots: the last block of a group of segments adds the group up,
// into its first slot, and the last of those adds the groups up. Not inline: its registers must not push the products'
// into memory.
template <int kRows>
__device__ __noinline__ void finish_in_last_block(const TilePair tiles, const GramPartials partials, int tasks) {
  const int64_t groups = partials.groups(), group = blockIdx.x / kGroup, first = group * kGroup;
  const int64_t members = partials.segments - first < kGroup ? partials.segments - first : kGroup;
  unsigned* const ended = tickets + partials.ticket + blockIdx.y * (groups + 1);
  if (!is_last_block(ended + 1 + group, static_cast<unsigned>(members))) return;
  add_slots<kRows, kGroup>(tiles, partials, tasks, first, members, 1,
                           [&](int, int, double* slot, double sum) { slot[first] = sum; });
  if (!is_last_block(ended, static_cast<unsigned>(groups))) return;
  add_slots<kRows, kMaxGroups>(tiles, partials, tasks, 0, groups, kGroup, [&](int i, int j, double*, double sum) {
    partials.K[i * tasks + j] = partials.K[j * tasks + i] = sum;
  });
}

// K from the segments' partial matrices, a warp a pair, in the order of finish_in_last_block.
static __global__ void __launch_bounds__(kThreads) gram_finish_kernel(const GramPartials partials, int tasks) {
  const int64_t pair = static_cast<int64_t>(blockIdx.x) * kWarps + warp_of_thread();
  int64_t i = 0;
  while (pair_index(i + 1, 0) <= pair) ++i;
  const int64_t j = pair - pair_index(i, 0);
  if (i >= tasks) return;
  double total = 0;
  for (int64_t group = 0; group < partials.groups(); ++group) {
    double sum = 0;
    for (int64_t k = lane_of_thread(); k < kGroup; k += kWarp) {
      const int64_t segment = group * kGroup + k;
      if (segment < partials.segments) sum += partials.slot[pair * partials.segments + segment];
    }
    sum = warp_sum(sum);
    if (group % kWarp == lane_of_thread()) total += sum;
  }
  total = warp_sum(total);
  if (lane_of_thread() == 0) partials.K[i * tasks + j] = partials.K[j * tasks + i] = total;
}

}  // namespace mtlkernels::cuda
