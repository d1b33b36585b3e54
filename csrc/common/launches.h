// A list of gradients -> launches. Pure host arithmetic on int64: no torch, no CUDA, no threads.
//
// A launch takes its parameters in a table, which has room for some of them: a list that does not fit takes more launches,
// and two of them may share a segment.
#pragma once

#include "plan.h"

namespace mtlkernels {

// The part of a plan that one launch does: the table's parameters, in whole or in part of the segments [first, last).
struct Portion {
  int64_t first, last;
  int64_t segment_length;
  bool continued;  // segment `first` has parameters in an earlier launch
};

// 8-byte words of a table: where a parameter starts, its elements, and a pointer a task. A kernel's parameters may take
// 32764 bytes since CUDA 12.1, 4 KB before; 256 bytes are left for the others.
constexpr int64_t kTableWords = (32764 - 256) / 8;
constexpr int64_t kTableWordsBefore = (4096 - 256) / 8;

constexpr int64_t table_capacity(int64_t words, int64_t tasks) { return words / (tasks + 2); }

inline std::vector<int64_t> present_parameters(const Plan& plan) {
  std::vector<int64_t> present;
  for (int64_t p = 0; p < static_cast<int64_t>(plan.numel.size()); ++p)
    if (plan.numel[p] > 0) present.push_back(p);
  return present;
}

// Calls body(begin, count, portion) for every launch, in flat order, with the place in `present` of the table's first
// parameter and their number.
template <class Body> void for_each_launch(const Plan& plan, const std::vector<int64_t>& present, int64_t capacity,
                                           const Body& body) {
  int64_t done = 0;  // segments begun
  for (int64_t begin = 0; begin < static_cast<int64_t>(present.size());) {
    const int64_t count = std::min(static_cast<int64_t>(present.size()) - begin, capacity);
    const int64_t last_param = present[begin + count - 1];
    const int64_t first = plan.segment_at(plan.offset[present[begin]]);
    const int64_t last = plan.segment_at(plan.offset[last_param] + plan.numel[last_param] - 1) + 1;
    body(begin, count, Portion{first, last, plan.blocks_per_segment * kBlock, first < done});
    done = last;
    begin += count;
  }
}

}  // namespace mtlkernels
