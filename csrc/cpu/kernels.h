// The CPU kernels over raw pointers, one table for each instruction set, and the choice between them.
//
// A "row" is one task's run of `length` consecutive elements. Rows need no alignment beyond their element's.
#pragma once

#include <cstdint>
#include <vector>

#include "../common/dtype.h"

namespace mtlkernels::cpu {

// A sum of any number of terms that is rounded about once: `rest` adds up what the additions to `sum` round away (Knuth's
// two-sum, which is exact whatever the order of sizes).
struct CompensatedSum {
  double sum = 0, rest = 0;

  void add(double x) {
    const double total = sum + x, part = total - sum;
    rest += (sum - (total - part)) + (x - part);
    sum = total;
  }
  // A sum that is infinite stays so: its rest is no number.
  double value() const { return rest - rest == 0 ? sum + rest : sum; }
};

// partial[pair_index(i, j)] += <row_i, row_j>, i >= j. `scratch` is gram_scratch_bytes(tasks) of 64-byte aligned memory.
using GramFn = void (*)(const void* const* rows, int64_t tasks, int64_t length, CompensatedSum* partial, void* scratch);

// out = beta * out + sum_t weights[t] * row_t; `out` is not read where beta is 0. `stream` stores past the cache.
using CombineFn = void (*)(const void* const* rows, const double* weights, int64_t tasks, int64_t length, void* out,
                           double beta, bool stream);

// GradDrop (see graddrop.inl): the draws of elements flat .. flat + length, flat a multiple of 4.
using GradDropFn = void (*)(const void* const* rows, const double* leaks, int64_t tasks, int64_t length, uint64_t seed,
                            uint64_t step, int64_t flat, void* out, bool stream);

// The mean without the `trim` smallest and largest of each column; a null row is zeros. `scratch` is
// trimmed_scratch_bytes(tasks) of 64-byte aligned memory.
using TrimmedFn = void (*)(const void* const* rows, int64_t tasks, int64_t length, int64_t trim, void* out, void* scratch);

// state += rate (scale * row - state); a null row is zeros. State rows are of the accumulator's type. Elements that would
// not be finite stay; returns whether there were none.
using TrackFn = bool (*)(const void* row, double scale, double rate, int64_t length, void* state);

// state += row^2; returns sum row^2 / sqrt(state + eps), NaN where a new value would not be finite.
using ExcessFn = double (*)(const void* row, double eps, int64_t length, void* state);

struct Kernels {
  const char* name;
  GramFn gram[kNumDTypes];
  CombineFn combine[kNumDTypes];          // `out` of the rows' dtype
  CombineFn combine_float32[kNumDTypes];  // `out` of float32; null for float64 rows
  GradDropFn graddrop[kNumDTypes];
  TrimmedFn trimmed[kNumDTypes];
  TrackFn track[kNumDTypes];
  ExcessFn excess[kNumDTypes];
};

int64_t gram_scratch_bytes(int64_t tasks);
int64_t trimmed_scratch_bytes(int64_t tasks);

// What rows of that dtype are added up in.
constexpr DType accumulator(DType dtype) { return dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32; }

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
