// One pass over a plan's gradients that moves a state of T rows in the flat space and measures it; see track.inl.
//
// state: T rows of plan.flat_length() accumulators; padding is neither read nor written.
#pragma once

#include <limits>
#include <memory>
#include <new>
#include <vector>

#include "../common/plan.h"
#include "gram.h"
#include "kernels.h"

namespace mtlkernels::cpu {

// state_t += rate (scale_t g_t - state_t), and K_ij = <state_i, state_j> of the new rows, block by block while they are
// in the cache. Row and column t of K are NaN where an element of row t would not have been finite.
template <class ParallelFor>
void track_gram(const Plan& plan, const std::vector<const void*>& rows, const std::vector<double>& scale, double rate,
                DType dtype, void* state, double* K, const ParallelFor& parallel_for) {
  const auto tasks = static_cast<int64_t>(scale.size());
  const auto params = static_cast<int64_t>(plan.numel.size());
  const int64_t pairs = num_pairs(tasks), size = element_size(dtype), wide = element_size(accumulator(dtype));
  std::vector<double> partials(plan.segments * pairs);
  std::vector<char> spoilt(plan.segments * tasks);
  const TrackFn track = kernels().track[static_cast<int>(dtype)];
  const GramFn gram = kernels().gram[static_cast<int>(accumulator(dtype))];
  parallel_for(plan.segments, segment_grain(plan, tasks), [&](int64_t begin, int64_t end) {
    GramWorkspace work(tasks);
    for (int64_t s = begin; s < end; ++s) {
      for_each_piece(plan, s, [&](const Piece& piece) {
        for (int64_t at = 0; at < piece.length; at += kBlock) {
          const int64_t n = std::min(kBlock, piece.length - at);
          for (int64_t t = 0; t < tasks; ++t) {
            const void* row = rows[t * params + piece.param];
            char* own = static_cast<char*>(state) + (t * plan.flat_length() + piece.flat + at) * wide;
            if (row) row = static_cast<const char*>(row) + (piece.begin + at) * size;
            if (!track(row, scale[t], rate, n, own)) spoilt[s * tasks + t] = 1;
            work.present[t] = own;
          }
          gram(work.present.data(), tasks, n, work.sums.data(), work.scratch.get());
        }
      });
      work.finish(partials.data() + s * pairs);
    }
  });
  sum_segments(partials, plan.segments, tasks, K);
  for (int64_t t = 0; t < tasks; ++t) {
    bool bad = false;
    for (int64_t s = 0; s < plan.segments; ++s) bad |= spoilt[s * tasks + t] != 0;
    for (int64_t i = 0; bad && i < tasks; ++i)
      K[t * tasks + i] = K[i * tasks + t] = std::numeric_limits<double>::quiet_NaN();
  }
}

// state_t += g_t^2, and e_t = sum g_t^2 / sqrt(state_t + eps) with the new state; NaN where it would not be finite.
template <class ParallelFor>
void excess(const Plan& plan, const std::vector<const void*>& rows, int64_t tasks, double eps, DType dtype, void* state,
            double* e, const ParallelFor& parallel_for) {
  const auto params = static_cast<int64_t>(plan.numel.size());
  const int64_t size = element_size(dtype), wide = element_size(accumulator(dtype));
  std::vector<double> partials(plan.segments * tasks, 0.0);
  const ExcessFn kernel = kernels().excess[static_cast<int>(dtype)];
  parallel_for(plan.segments, segment_grain(plan, tasks), [&](int64_t begin, int64_t end) {
    for (int64_t s = begin; s < end; ++s) {
      for_each_piece(plan, s, [&](const Piece& piece) {
        for (int64_t t = 0; t < tasks; ++t) {
          const void* row = rows[t * params + piece.param];
          if (!row) continue;
          char* own = static_cast<char*>(state) + (t * plan.flat_length() + piece.flat) * wide;
          partials[s * tasks + t] += kernel(static_cast<const char*>(row) + piece.begin * size, eps, piece.length, own);
        }
      });
    }
  });
  for (int64_t t = 0; t < tasks; ++t) {
    e[t] = 0;
    for (int64_t s = 0; s < plan.segments; ++s) e[t] += partials[s * tasks + t];
  }
}

}  // namespace mtlkernels::cpu
