// The Gram matrix of a plan's gradients on the CPU: segments in parallel, each into its own slot, slots added in order.
#pragma once

#include <algorithm>
#include <memory>
#include <new>
#include <vector>

#include "../plan.h"
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

// partial: packed lower triangle of the segment's Gram matrix, overwritten.
// rows: T * P task-major, null where absent: such a task is left out of that parameter's pairs.
inline void gram_segment(const Plan& plan, int64_t s, const std::vector<const void*>& rows, int64_t tasks, DType dtype,
                         double* partial, void* scratch) {
  const int64_t params = static_cast<int64_t>(plan.numel.size());
  std::fill(partial, partial + num_pairs(tasks), 0.0);
  std::vector<const void*> present(tasks);
  std::vector<int64_t> task(tasks);
  std::vector<double> some;
  for_each_piece(plan, s, [&](const Piece& piece) {
    int64_t count = 0;
    for (int64_t t = 0; t < tasks; ++t) {
      if (const void* row = rows[t * params + piece.param]) {
        present[count] = static_cast<const char*>(row) + piece.begin * element_size(dtype);
        task[count++] = t;
      }
    }
    const GramFn kernel = kernels().gram[static_cast<int>(dtype)];
    if (count == tasks) {
      kernel(present.data(), tasks, piece.length, partial, scratch);
      return;
    }
    some.assign(num_pairs(count), 0.0);
    kernel(present.data(), count, piece.length, some.data(), scratch);
    for (int64_t i = 0; i < count; ++i)
      for (int64_t j = 0; j <= i; ++j) partial[pair_index(task[i], task[j])] += some[pair_index(i, j)];
  });
}

// K: (tasks, tasks), row by row.
template <class ParallelFor>
void gram(const Plan& plan, const std::vector<const void*>& rows, int64_t tasks, DType dtype, double* K,
          const ParallelFor& parallel_for) {
  const int64_t pairs = num_pairs(tasks);
  std::vector<double> partials(plan.segments * pairs);
  parallel_for(plan.segments, segment_grain(plan, tasks), [&](int64_t begin, int64_t end) {
    const std::unique_ptr<void, AlignedDelete> scratch(::operator new(gram_scratch_bytes(tasks), std::align_val_t{64}));
    for (int64_t s = begin; s < end; ++s)
      gram_segment(plan, s, rows, tasks, dtype, partials.data() + s * pairs, scratch.get());
  });
  for (int64_t i = 0; i < tasks; ++i) {
    for (int64_t j = 0; j <= i; ++j) {
      double sum = 0;
      for (int64_t s = 0; s < plan.segments; ++s) sum += partials[s * pairs + pair_index(i, j)];
      K[i * tasks + j] = K[j * tasks + i] = sum;
    }
  }
}

}  // namespace mtlkernels::cpu
