// The Gram matrix of a plan's gradients on the CPU: segments in parallel, each into its own slot, slots added in order.
#pragma once

#include <algorithm>
#include <memory>
#include <new>
#include <vector>

#include "../common/plan.h"
#include "kernels.h"

namespace mtlkernels::cpu {

// Loads a thread must be given before it is worth waking.
constexpr int64_t kGrainElements = 1 << 16;

inline int64_t segment_grain(const Plan& plan, int64_t tasks) {
  return std::max<int64_t>(1, kGrainElements / (plan.blocks_per_segment * kBlock * tasks));
}

struct AlignedDelete {
  void operator()(void* memory) const { ::operator delete(memory, std::align_val_t{64}); }
};

// What a thread needs for its segments' Gram matrices.
struct GramWorkspace {
  std::unique_ptr<void, AlignedDelete> scratch;
  std::vector<CompensatedSum> sums, some;  // a pair
  std::vector<const void*> present;
  std::vector<int64_t> task;

  explicit GramWorkspace(int64_t tasks)
      : scratch(::operator new(gram_scratch_bytes(tasks), std::align_val_t{64})), sums(num_pairs(tasks)), present(tasks),
        task(tasks) {}

  // Writes the sums to a segment's place and begins anew.
  void finish(double* partial) {
    for (CompensatedSum& sum : sums) {
      *partial++ = sum.value();
      sum = {};
    }
  }
};

// Adds a piece's products to work.sums. rows: T * P task-major, null where absent: such a task is left out of that
// parameter's pairs.
inline void gram_piece(const Piece& piece, const std::vector<const void*>& rows, int64_t tasks, int64_t params, DType dtype,
                       GramWorkspace& work) {
  int64_t count = 0;
  for (int64_t t = 0; t < tasks; ++t) {
    if (const void* row = rows[t * params + piece.param]) {
      work.present[count] = static_cast<const char*>(row) + piece.begin * element_size(dtype);
      work.task[count++] = t;
    }
  }
  const GramFn kernel = kernels().gram[static_cast<int>(dtype)];
  if (count == tasks) return kernel(work.present.data(), tasks, piece.length, work.sums.data(), work.scratch.get());
  work.some.assign(num_pairs(count), {});
  kernel(work.present.data(), count, piece.length, work.some.data(), work.scratch.get());
  for (int64_t i = 0; i < count; ++i)
    for (int64_t j = 0; j <= i; ++j)
      work.sums[pair_index(work.task[i], work.task[j])].add(work.some[pair_index(i, j)].value());
}

// K: (tasks, tasks), row by row, from the segments' packed lower triangles, added up in order.
inline void sum_segments(const std::vector<double>& partials, int64_t segments, int64_t tasks, double* K) {
  const int64_t pairs = num_pairs(tasks);
  std::vector<CompensatedSum> sums(pairs);
  for (int64_t s = 0; s < segments; ++s)
    for (int64_t p = 0; p < pairs; ++p) sums[p].add(partials[s * pairs + p]);
  for (int64_t i = 0; i < tasks; ++i)
    for (int64_t j = 0; j <= i; ++j) K[i * tasks + j] = K[j * tasks + i] = sums[pair_index(i, j)].value();
}

template <class ParallelFor>
void gram(const Plan& plan, const std::vector<const void*>& rows, int64_t tasks, DType dtype, double* K,
          const ParallelFor& parallel_for) {
  const int64_t pairs = num_pairs(tasks);
  const auto params = static_cast<int64_t>(plan.numel.size());
  std::vector<double> partials(plan.segments * pairs);
  parallel_for(plan.segments, segment_grain(plan, tasks), [&](int64_t begin, int64_t end) {
    GramWorkspace work(tasks);
    for (int64_t s = begin; s < end; ++s) {
      for_each_piece(plan, s, [&](const Piece& piece) { gram_piece(piece, rows, tasks, params, dtype, work); });
      work.finish(partials.data() + s * pairs);
    }
  });
  sum_segments(partials, plan.segments, tasks, K);
}

}  // namespace mtlkernels::cpu
