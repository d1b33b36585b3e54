// The weighted sum of T rows on the GPU: out[k] = beta out[k] + sum_t w_t x_t[k] in the flat space, padding zero.
//
// Bytes: every element of the rows once, `out` written once (and read where beta is not 0). Order: the tasks', by
// fused multiply-adds in the accumulator's type onto zero or beta out, rounded once: the bits depend on nothing else.
// Segments are walked from the last to the first: what the Gram matrix read last is read first, from the cache.
#pragma once

#include "columns.cuh"

namespace mtlkernels::cuda {

struct WeightVector {
  const void* data;
  int64_t stride;
  bool wide;  // float64, else float32

  template <class A>
  __device__ A at(int task) const {
    return wide ? static_cast<A>(static_cast<const double*>(data)[task * stride])
                : static_cast<A>(static_cast<const float*>(data)[task * stride]);
  }
};

// A chunk of the direction. kMany: more tasks than kRows, which are then taken kRows at a time.
template <bool kMany, int kRows, bool kWhole, class S, int kWords>
__device__ void combine_chunk(const Walk<kWords>& walk, const Access<kWhole>& access, const accumulator_t<S>* weight,
                              S* out, double beta) {
  using A = accumulator_t<S>;
  constexpr int kStep = Pack<S>::kCount * kWarp;
  [[maybe_unused]] constexpr int kUnroll = kWhole ? 8 / kRows : 1;
  const int length = kWhole ? kChunk : walk.length();
  S* const to = out + walk.flat();
#pragma unroll kUnroll
  for (int s = 0; s < (length + kStep - 1) / kStep; ++s) {
    const int at = s * kStep + lane_of_thread() * Pack<S>::kCount;
    A sum[Pack<S>::kCount];
#pragma unroll
    for (int e = 0; e < Pack<S>::kCount; ++e) sum[e] = 0;
    if (beta != 0) {
      for (int e = 0; e < Pack<S>::kCount; ++e)
        if (at + e < length) sum[e] = static_cast<A>(beta) * widen(to[at + e]);
    }
    for (int first = 0; first < (kMany ? walk.table->tasks : 1); first += kRows) {
      Pack<S> pack[kRows];
      read_rows(pack, walk, first, at, length, access);
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        if (!row_of_chunk<S>(walk, first + r)) continue;
#pragma unroll
        for (int e = 0; e < Pack<S>::kCount; ++e) sum[e] = fma(weight[first + r], A(widen(pack[r].element[e])), sum[e]);
      }
    }
    Pack<S> answer;
#pragma unroll
    for (int e = 0; e < Pack<S>::kCount; ++e) answer.element[e] = narrow(sum[e], S{});
    write_pack(answer, to, at, length, access.out_aligned);
  }
}

// Grid: the segments of the portion.
template <class S, int kRows, bool kMany, int kWords>
__global__ void __launch_bounds__(kThreads, 4)
    combine_kernel(const __grid_constant__ Table<kWords> table, const Portion portion, const WeightVector weights,
                   S* out, double beta) {
  using A = accumulator_t<S>;
  __shared__ A weight[kMany ? kMaxListTasks : kRows];
  for (int t = static_cast<int>(threadIdx.x); t < table.tasks; t += kThreads) weight[t] = weights.template at<A>(t);
  __syncthreads();
  const A* const factors = weight;
  const int64_t segment = portion.last - 1 - static_cast<int64_t>(blockIdx.x);
  for_each_chunk(table, portion, segment, out, [&](const auto& walk, const auto& access) {
    combine_chunk<kMany, kRows>(walk, access, factors, out, beta);
  });
}

// out: flat, of plan.flat_length() elements; not read where beta is 0. rows: tasks * P task-major, null where absent.
template <class S>
void combine(const Plan& plan, const std::vector<const void*>& rows, int64_t tasks, const WeightVector& weights,
             void* out, double beta, Stream stream) {
  with_rows(tasks, [&]<int kRows, bool kMany>() {
    for_each_table(plan, rows, tasks, [&]<int kWords>(const Table<kWords>& table, const Portion& portion) {
      const dim3 grid(static_cast<unsigned>(portion.last - portion.first));
      launch(combine_kernel<S, kRows, kMany, kWords>, grid, kThreads, stream, table, portion, weights,
             static_cast<S*>(out), beta);
    });
  });
}

}  // namespace mtlkernels::cuda
