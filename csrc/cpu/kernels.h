// The CPU kernels over raw pointers, one table for each instruction set, and the choice between them.
//
// A "row" is one task's run of `length` consecutive elements. Rows need no alignment beyond their element's.
#pragma once

#include <cstdint>
#include <vector>

#include "../dtype.h"

namespace mtlkernels::cpu {

// partial[pair_index(i, j)] += <row_i, row_j>, i >= j. `scratch` is gram_scratch_bytes(tasks) of 64-byte aligned memory.
using GramFn = void (*)(const void* const* rows, int64_t tasks, int64_t length, double* partial, void* scratch);

// out = beta * out + sum_t weights[t] * row_t; `out` is not read where beta is 0. `stream` stores past the cache.
using CombineFn = void (*)(const void* const* rows, const double* weights, int64_t tasks, int64_t length, void* out,
                           double beta, bool stream);

struct Kernels {
  const char* name;
  GramFn gram[kNumDTypes];
  CombineFn combine[kNumDTypes];
};

int64_t gram_scratch_bytes(int64_t tasks);

const Kernels& baseline_kernels();
#if defined(__x86_64__)
const Kernels& avx2_kernels();
const Kernels& avx512_kernels();
#endif

// The sets compiled in that this processor has, the widest last.
std::vector<const Kernels*> found_kernels();

// The widest set found; ATEN_CPU_CAPABILITY (default, avx2, avx512) lowers it, as it does for torch.
const Kernels& kernels();

}  // namespace mtlkernels::cpu
