// The trimmed mean of T rows on the GPU: in every column the `trim` smallest and `trim` largest values are left out and
// the rest is averaged in the accumulator's type, in float64 where that overflows, in the tasks' order. An absent row counts
// as zeros. A NaN in a column makes its result NaN; an infinity is an extreme value like others.
//
// A value is told by its rank: how many of its column are smaller, or as large and of an earlier task. Nothing is moved.
// Bytes: every element of the rows once, `out` written once. Beyond eight tasks a warp reads the column's rows again for
// each of its values, from the first-level cache: T^2 comparisons an element.
#pragma once

#include "columns.cuh"

namespace mtlkernels::cuda {

// A chunk of at most kRows tasks: all values of a thread's elements are in its registers.
template <class S, int kRows, bool kWhole, int kWords>
__device__ void trimmed_chunk(const Walk<kWords>& walk, const Access<kWhole>& access, int trim, S* out) {
  using A = accumulator_t<S>;
  constexpr int kCount = Pack<S>::kCount, kStep = kCount * kWarp;
  const int length = kWhole ? kChunk : walk.length(), tasks = walk.table->tasks;
  for (int s = 0; s < (length + kStep - 1) / kStep; ++s) {
    const int at = s * kStep + lane_of_thread() * kCount;
    Pack<S> pack[kRows] = {};
    read_rows(pack, walk, 0, at, length, access);
    A mean[kCount];
#pragma unroll
    for (int e = 0; e < kCount; ++e) {
      A value[kRows], total = 0;
      int rank[kRows] = {};
      bool spoilt = false;
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        value[r] = r < tasks ? widen(pack[r].element[e]) : A(INFINITY);  // beyond the last task: behind all others
        spoilt = spoilt || value[r] != value[r];
#pragma unroll
        for (int q = 0; q < r; ++q) {
          const bool behind = value[q] <= value[r];
          rank[r] += behind;
          rank[q] += !behind;
        }
      }
#pragma unroll
      for (int r = 0; r < kRows; ++r)
        if (rank[r] >= trim && rank[r] < tasks - trim) total += value[r];
      mean[e] = total / A(tasks - 2 * trim);
      if (!is_finite(mean[e])) {
        double wide = 0;
#pragma unroll
        for (int r = 0; r < kRows; ++r)
          if (rank[r] >= trim && rank[r] < tasks - trim) wide += static_cast<double>(value[r]);
        mean[e] = static_cast<A>(wide / (tasks - 2 * trim));
      }
      if (spoilt) mean[e] = A(NAN);
    }
    write_sums(mean, out + walk.flat(), at, length, access.out_aligned);
  }
}

// Of an absent row zero.
template <class S, int kWords>
__device__ accumulator_t<S> value_at(const Walk<kWords>& walk, int task, int k) {
  const S* row = row_of_chunk<S>(walk, task);
  return row ? widen(read(row + k)) : accumulator_t<S>(0);
}

// A chunk of any number of tasks, an element a thread.
template <class S, int kWords>
__device__ void trimmed_chunk_of_many(const Walk<kWords>& walk, int trim, S* out) {
  using A = accumulator_t<S>;
  const int tasks = walk.table->tasks;
  for (int k = lane_of_thread(); k < walk.length(); k += kWarp) {
    A total = 0;
    double wide = 0;
    bool spoilt = false;
    for (int t = 0; t < tasks; ++t) {
      const A x = value_at<S>(walk, t, k);
      int rank = 0;
      for (int q = 0; q < tasks; ++q) {
        const A other = value_at<S>(walk, q, k);
        rank += q < t ? other <= x : other < x;
      }
      spoilt = spoilt || x != x;
      if (rank < trim || rank >= tasks - trim) continue;
      total += x;
      wide += static_cast<double>(x);
    }
    A mean = total / A(tasks - 2 * trim);
    if (!is_finite(mean)) mean = static_cast<A>(wide / (tasks - 2 * trim));
    out[walk.flat() + k] = narrow(spoilt ? A(NAN) : mean, S{});
  }
}

// Grid: the segments of the portion.
template <class S, int kRows, bool kMany, int kWords>
__global__ void __launch_bounds__(kThreads, 4)
    trimmed_kernel(const __grid_constant__ Table<kWords> table, const Portion portion, int trim, S* out) {
  const int64_t segment = portion.first + static_cast<int64_t>(blockIdx.x);
  for_each_chunk<S>(table, portion, segment, out, [&](const auto& walk, const auto& access) {
    if constexpr (kMany) {
      trimmed_chunk_of_many<S>(walk, trim, out);
    } else {
      trimmed_chunk<S, kRows>(walk, access, trim, out);
    }
  });
}

// out: flat, of plan.flat_length() elements. rows: tasks * P task-major, null where absent. 2 trim < tasks.
template <class S>
void trimmed_mean(const Plan& plan, const std::vector<const void*>& rows, int64_t tasks, int64_t trim, void* out,
                  Stream stream) {
  with_rows(tasks, [&]<int kRows, bool kMany>() {
    for_each_table(plan, rows, tasks, [&]<int kWords>(const Table<kWords>& table, const Portion& portion) {
      const dim3 grid(static_cast<unsigned>(portion.last - portion.first));
      launch(trimmed_kernel<S, kRows, kMany, kWords>, grid, kThreads, stream, table, portion, static_cast<int>(trim),
             static_cast<S*>(out));
    });
  });
}

}  // namespace mtlkernels::cuda
