// GradDrop and the trimmed mean of a plan's gradients on the CPU, into the flat space; see graddrop.inl and trimmed.inl.
#pragma once

#include <cstring>
#include <memory>
#include <new>
#include <vector>

#include "../common/plan.h"
#include "combine.h"
#include "gram.h"
#include "huge_pages.h"
#include "kernels.h"

namespace mtlkernels::cpu {

// Zeros the padding behind a parameter whose last piece has just been written to `to`.
inline void clear_padding(const Plan& plan, const Piece& piece, int64_t size, char* to) {
  const int64_t numel = plan.numel[piece.param];
  if (piece.begin + piece.length == numel) std::memset(to + piece.length * size, 0, (align_up(numel) - numel) * size);
}

// leaks: one a task. Absent rows are left out.
template <class ParallelFor>
void graddrop(const Plan& plan, const std::vector<const void*>& rows, const std::vector<double>& leaks, DType dtype,
              uint64_t seed, uint64_t step, void* out, const ParallelFor& parallel_for) {
  const auto tasks = static_cast<int64_t>(leaks.size());
  const auto params = static_cast<int64_t>(plan.numel.size());
  const int64_t size = element_size(dtype);
  const bool stream = plan.flat_length() * size >= kStreamBytes;
  advise_huge_pages(out, plan.flat_length() * size);
  const GradDropFn kernel = kernels().graddrop[static_cast<int>(dtype)];
  parallel_for(plan.segments, segment_grain(plan, tasks), [&](int64_t begin, int64_t end) {
    std::vector<const void*> present(tasks);
    std::vector<double> leak(tasks);
    for (int64_t s = begin; s < end; ++s) {
      for_each_piece(plan, s, [&](const Piece& piece) {
        int64_t count = 0;
        for (int64_t t = 0; t < tasks; ++t) {
          if (const void* row = rows[t * params + piece.param]) {
            present[count] = static_cast<const char*>(row) + piece.begin * size;
            leak[count++] = leaks[t];
          }
        }
        char* to = static_cast<char*>(out) + piece.flat * size;
        kernel(present.data(), leak.data(), count, piece.length, seed, step, piece.flat, to, stream);
        clear_padding(plan, piece, size, to);
      });
    }
  });
}

template <class ParallelFor>
void trimmed_mean(const Plan& plan, const std::vector<const void*>& rows, int64_t tasks, DType dtype, int64_t trim,
                  void* out, const ParallelFor& parallel_for) {
  const auto params = static_cast<int64_t>(plan.numel.size());
  const int64_t size = element_size(dtype);
  advise_huge_pages(out, plan.flat_length() * size);
  const TrimmedFn kernel = kernels().trimmed[static_cast<int>(dtype)];
  parallel_for(plan.segments, segment_grain(plan, tasks), [&](int64_t begin, int64_t end) {
    const std::unique_ptr<void, AlignedDelete> scratch(::operator new(trimmed_scratch_bytes(tasks), std::align_val_t{64}));
    std::vector<const void*> here(tasks);
    for (int64_t s = begin; s < end; ++s) {
      for_each_piece(plan, s, [&](const Piece& piece) {
        for (int64_t t = 0; t < tasks; ++t) {
          const void* row = rows[t * params + piece.param];
          here[t] = row ? static_cast<const char*>(row) + piece.begin * size : nullptr;
        }
        char* to = static_cast<char*>(out) + piece.flat * size;
        kernel(here.data(), tasks, piece.length, trim, to, scratch.get());
        clear_padding(plan, piece, size, to);
      });
    }
  });
}

}  // namespace mtlkernels::cpu
