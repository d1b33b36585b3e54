// Sizes -> blocks of work. Pure host arithmetic on int64: no torch, no CUDA, no threads.
//
// A plan lays the P parameters out one after another in a "flat" space in which every parameter starts at a
// multiple of kAlign elements, and cuts that space into segments. A segment is the unit of scheduling and of the
// fixed-order reduction: the cut depends on the sizes alone, so results do not depend on the number of threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace mtlkernels {

constexpr int64_t kAlign = 16;                // elements; 64 bytes of float32, so no two segments share a cache line
constexpr int64_t kBlock = 4096;              // elements; segments end at multiples of it
constexpr int64_t kWorkspaceBytes = 1 << 20;  // bound on all partial results of a Gram together
constexpr int64_t kMaxSegments = 1024;
constexpr int64_t kTasksOfSegment = 8;  // whose elements are enough work for a segment

constexpr int64_t align_up(int64_t n) { return (n + kAlign - 1) / kAlign * kAlign; }

constexpr int64_t num_pairs(int64_t tasks) { return tasks * (tasks + 1) / 2; }

// Index of the pair (i, j), i >= j, in a packed lower triangle.
constexpr int64_t pair_index(int64_t i, int64_t j) { return i * (i + 1) / 2 + j; }

struct Piece {
  int64_t param;   // which parameter
  int64_t begin;   // first element inside the parameter
  int64_t length;  // elements
  int64_t flat;    // the first element's place in the flat space
};

struct Plan {
  std::vector<int64_t> numel;   // P
  std::vector<int64_t> offset;  // P + 1, the last is the flat length
  int64_t segments = 0;
  int64_t blocks_per_segment = 1;

  int64_t flat_length() const { return offset.back(); }
  int64_t segment_begin(int64_t s) const { return std::min(s * blocks_per_segment * kBlock, flat_length()); }
  int64_t segment_end(int64_t s) const { return segment_begin(s + 1); }
  int64_t segment_at(int64_t flat) const { return flat / (blocks_per_segment * kBlock); }
};

// The most segments of a Gram matrix, each of which keeps its pairs.
constexpr int64_t gram_segments(int64_t tasks) {
  const int64_t bytes = num_pairs(tasks) * static_cast<int64_t>(sizeof(double));
  return std::clamp(kWorkspaceBytes / bytes, int64_t{1}, kMaxSegments);
}

// The most segments of a kernel that keeps a number a task of them, or nothing: with more tasks they are shorter, so that a
// list which takes several launches, as it does with many tasks, still gives each of them enough blocks.
constexpr int64_t row_segments(int64_t tasks) {
  return kMaxSegments * std::max<int64_t>(1, (tasks + kTasksOfSegment - 1) / kTasksOfSegment);
}

inline Plan make_plan(std::vector<int64_t> numel, int64_t most_segments) {
  Plan plan;
  plan.offset.reserve(numel.size() + 1);
  plan.offset.push_back(0);
  for (int64_t n : numel) plan.offset.push_back(plan.offset.back() + align_up(n));
  plan.numel = std::move(numel);
  const int64_t blocks = (plan.flat_length() + kBlock - 1) / kBlock;
  plan.blocks_per_segment = std::max<int64_t>(1, (blocks + most_segments - 1) / most_segments);
  plan.segments = (blocks + plan.blocks_per_segment - 1) / plan.blocks_per_segment;
  return plan;
}

// Calls visit(Piece) for every non-empty run of one parameter's elements inside segment s, in flat order.
template <class Visit>
void for_each_piece(const Plan& plan, int64_t s, Visit&& visit) {
  const int64_t begin = plan.segment_begin(s), end = plan.segment_end(s);
  auto next = std::upper_bound(plan.offset.begin(), plan.offset.end(), begin);
  for (int64_t p = next - plan.offset.begin() - 1; p < static_cast<int64_t>(plan.numel.size()); ++p) {
    if (plan.offset[p] >= end) break;
    const int64_t first = std::max(begin - plan.offset[p], int64_t{0});
    const int64_t last = std::min(end - plan.offset[p], plan.numel[p]);
    if (first < last) visit(Piece{p, first, last - first, plan.offset[p] + first});
  }
}

}  // namespace mtlkernels
