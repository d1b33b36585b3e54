// The weighted sum of T rows on the GPU: out[k] = beta out[k] + sum_t w_t x_t[k] in the flat space, padding zero.
//
// Bytes: every element of the rows once, `out` written once (and read where beta is not 0). Order: the tasks', by
// fused multiply-adds in the accumulator's type onto zero or beta out, rounded once to the type of `out`, which is the
// rows' or the accumulator's: the bits depend on nothing else. Factors that a float32 sum would lose or blow up make it
// a float64 sum; every block sees the same weights and decides alike. An element whose float32 sum is not finite is added
// up in float64 too: what overflowed may have been a part of a sum that fits.
// Segments are walked from the last to the first: what the Gram matrix read last is read first, from the cache.
#pragma once

#include "../common/dtype.h"
#include "columns.cuh"

namespace mtlkernels::cuda {

struct WeightVector {
  const void* data;
  int64_t stride;
  bool wide;  // float64, else float32

  __device__ double at(int task) const {
    return wide ? static_cast<const double*>(data)[task * stride]
                : static_cast<double>(static_cast<const float*>(data)[task * stride]);
  }
};

// The float64 sum of element k of the chunk, `to` its place in the direction.
template <class S, class O, int kWords>
__device__ __noinline__ double wide_sum(const Walk<kWords>& walk, int k, const WeightVector& weights, const O* to,
                                        double beta) {
  double sum = beta == 0 ? 0.0 : beta * static_cast<double>(widen(*to));
  for (int t = 0; t < walk.table->tasks; ++t)
    if (const S* row = row_of_chunk<S>(walk, t)) sum = fma(weights.at(t), static_cast<double>(widen(read(row + k))), sum);
  return sum;
}

// A chunk of the direction. kMany: more tasks than kRows, which are then taken kHeld at a time.
template <class S, bool kMany, int kRows, bool kWhole, class O, int kWords>
__device__ void combine_chunk(const Walk<kWords>& walk, const Access<kWhole>& access, const accumulator_t<S>* weight,
                              const WeightVector& weights, O* out, double beta) {
  using A = accumulator_t<S>;
  constexpr int kStep = Pack<S>::kCount * kWarp;
  constexpr int kHeld = kMany && sizeof(S) == 2 ? 4 : kRows;  // eight would spill beside the sums of eight elements
  [[maybe_unused]] constexpr int kUnroll = kWhole ? 8 / kRows : 1;
  const int length = kWhole ? kChunk : walk.length();
  O* const to = out + walk.flat();
#pragma unroll kUnroll
  for (int s = 0; s < (length + kStep - 1) / kStep; ++s) {
    const int at = s * kStep + lane_of_thread() * Pack<S>::kCount;
    A sum[Pack<S>::kCount];
#pragma unroll
    for (int e = 0; e < Pack<S>::kCount; ++e) sum[e] = 0;
    if (beta != 0) {
#pragma unroll
      for (int first = 0; first < Pack<S>::kCount; first += Pack<O>::kCount) {
        Pack<O> old = {};
        if constexpr (kWhole) old = read_own(to + at + first);
#pragma unroll
        for (int e = 0; e < Pack<O>::kCount; ++e)
          if (kWhole || at + first + e < length)
            sum[first + e] = static_cast<A>(beta) * widen(kWhole ? old.element[e] : to[at + first + e]);
      }
    }
    for (int first = 0; first < (kMany ? walk.table->tasks : 1); first += kHeld) {
      Pack<S> pack[kHeld];
      read_rows(pack, walk, first, at, length, access);
#pragma unroll
      for (int r = 0; r < kHeld; ++r) {
        if (!row_of_chunk<S>(walk, first + r)) continue;
#pragma unroll
        for (int e = 0; e < Pack<S>::kCount; ++e) sum[e] = fma(weight[first + r], A(widen(pack[r].element[e])), sum[e]);
      }
    }
    if constexpr (std::is_same_v<A, float>) {
#pragma unroll
      for (int e = 0; e < Pack<S>::kCount; ++e)
        if (!is_finite(sum[e]) && at + e < length)
          sum[e] = static_cast<float>(wide_sum<S>(walk, at + e, weights, to + at + e, beta));
    }
    write_sums(sum, to, at, length, access.out_aligned);
  }
}

// A segment of a direction that float32 sums would get wrong, an element a thread at a time: such weights are rare.
template <class S, class O, int kWords>
__device__ void combine_wide(const Table<kWords>& table, const Portion& portion, int64_t segment,
                             const WeightVector& weights, O* out, double beta) {
  Walk<kWords> walk(table, portion, segment);
  for (walk.skip(warp_of_thread()); walk.more(); walk.skip(kWarps)) {
    O* const to = out + walk.flat();
    for (int k = lane_of_thread(); k < walk.length(); k += kWarp) {
      to[k] = narrow(static_cast<float>(wide_sum<S>(walk, k, weights, to + k, beta)), O{});
    }
    clear_padding(walk, out);
  }
}

// Grid: the segments of the portion.
template <class S, class O, int kRows, bool kMany, int kWords>
__global__ void __launch_bounds__(kThreads, 4)
    combine_kernel(const __grid_constant__ Table<kWords> table, const Portion portion, const WeightVector weights, O* out,
                   double beta) {
  using A = accumulator_t<S>;
  __shared__ A weight[kMany ? kMaxListTasks : kRows];
  bool outside = outside_float(beta);
  for (int t = static_cast<int>(threadIdx.x); t < table.tasks; t += kThreads) {
    const double factor = weights.at(t);
    outside = outside || outside_float(factor);
    weight[t] = static_cast<A>(factor);
  }
  const bool wide = __syncthreads_or(outside);
  const int64_t segment = portion.last - 1 - static_cast<int64_t>(blockIdx.x);
  if constexpr (std::is_same_v<A, float>)
    if (wide) return combine_wide<S>(table, portion, segment, weights, out, beta);
  const A* const factors = weight;
  for_each_chunk<S>(table, portion, segment, out, [&](const auto& walk, const auto& access) {
    combine_chunk<S, kMany, kRows>(walk, access, factors, weights, out, beta);
  });
}

// out: flat, of plan.flat_length() elements; not read where beta is 0. rows: tasks * P task-major, null where absent.
// S: of the rows, O: of `out`, S or its accumulator.
template <class S, class O>
void combine(const Plan& plan, const std::vector<const void*>& rows, int64_t tasks, const WeightVector& weights, void* out,
             double beta, Stream stream) {
  with_rows(tasks, [&]<int kRows, bool kMany>() {
    for_each_table(plan, rows, tasks, [&]<int kWords>(const Table<kWords>& table, const Portion& portion) {
      const dim3 grid(static_cast<unsigned>(portion.last - portion.first));
      launch(combine_kernel<S, O, kRows, kMany, kWords>, grid, kThreads, stream, table, portion, weights,
             static_cast<O*>(out), beta);
    });
  });
}

}  // namespace mtlkernels::cuda
