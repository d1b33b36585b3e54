// The weighted sum of a plan's gradients on the CPU, into the flat space. Segments are walked from the last to the
// first: what the Gram matrix read last is still in the cache and is read first.
#pragma once

#include <cstring>
#include <vector>

#include "../common/plan.h"
#include "gram.h"
#include "huge_pages.h"
#include "kernels.h"

namespace mtlkernels::cpu {

// A direction above this will not be in the cache when the optimizer asks for it: store it past the cache.
constexpr int64_t kStreamBytes = int64_t{8} << 20;

// out = beta * out + sum_t w_t g_t in the flat space; padding becomes zero. fresh: `out` was just allocated. out_dtype: the
// rows', or float32 for rows of 16 bits.
template <class ParallelFor>
void combine(const Plan& plan, const std::vector<const void*>& rows, const double* weights, int64_t tasks, DType dtype,
             void* out, DType out_dtype, double beta, bool fresh, const ParallelFor& parallel_for) {
  const int64_t params = static_cast<int64_t>(plan.numel.size());
  const int64_t size = element_size(dtype), out_size = element_size(out_dtype);
  const int64_t bytes = plan.flat_length() * out_size;
  const bool stream = beta == 0 && bytes >= kStreamBytes;
  if (fresh) advise_huge_pages(out, bytes);
  const CombineFn kernel = (out_dtype == dtype ? kernels().combine : kernels().combine_float32)[static_cast<int>(dtype)];
  parallel_for(plan.segments, segment_grain(plan, tasks), [&](int64_t begin, int64_t end) {
    std::vector<const void*> present(tasks);
    std::vector<double> weight(tasks);
    for (int64_t s = end - 1; s >= begin; --s) {
      for_each_piece(plan, s, [&](const Piece& piece) {
        int64_t count = 0;
        for (int64_t t = 0; t < tasks; ++t) {
          if (const void* row = rows[t * params + piece.param]) {
            present[count] = static_cast<const char*>(row) + piece.begin * size;
            weight[count++] = weights[t];
          }
        }
        char* to = static_cast<char*>(out) + piece.flat * out_size;
        kernel(present.data(), weight.data(), count, piece.length, to, beta, stream);
        const int64_t numel = plan.numel[piece.param];
        if (piece.begin + piece.length == numel)
          std::memset(to + piece.length * out_size, 0, (align_up(numel) - numel) * out_size);
      });
    }
  });
}

}  // namespace mtlkernels::cpu
