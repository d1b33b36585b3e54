// GradDrop of T rows on the GPU: out[k] = sum_t f_t x_t[k], f_t = 1 where the sign of x_t[k] was drawn, else leak_t;
// the rule is in csrc/cpu/graddrop.inl, its draws in csrc/common/philox.h.
//
// Bytes: every element of the rows once, `out` written once. Beyond eight tasks a step's rows are read again for the
// second sum, 512 bytes a row and warp, which the first-level cache has just been given. Sums in the accumulator's type
// and the tasks' order; a decision depends on one rounded product, so the bits depend on nothing else. An element of which
// the sizes' sum or the answer is not finite in float32 is computed again in float64, the decision too.
#pragma once

#include "../common/philox.h"
#include "columns.cuh"

namespace mtlkernels::cuda {

// On the device: the words of the draw, and a float64 a task.
struct Drawing {
  const int64_t *seed, *step;
  const double* leaks;
};

// What a thread decides of the elements of a pack.
template <class S>
struct Signs {
  using A = accumulator_t<S>;
  static constexpr int kCount = Pack<S>::kCount;
  A sum[kCount], size[kCount];  // of the values and of their magnitudes
  bool plus[kCount], minus[kCount];

  __device__ Signs() {
#pragma unroll
    for (int e = 0; e < kCount; ++e) sum[e] = size[e] = 0;
  }
  __device__ void add(const Pack<S>& pack) {
#pragma unroll
    for (int e = 0; e < kCount; ++e) {
      const A x = widen(pack.element[e]);
      sum[e] += x;
      size[e] += x < 0 ? -x : x;
    }
  }
  // A bit for each element whose sizes' sum is finite.
  __device__ unsigned fitting() const {
    unsigned bits = 0;
#pragma unroll
    for (int e = 0; e < kCount; ++e) bits |= is_finite(size[e]) ? 1u << e : 0u;
    return bits;
  }
  // flat: a multiple of kCount. Four elements share a draw; a pack of two float64 uses half of one.
  __device__ void draw(int64_t flat, uint64_t seed, uint64_t step) {
    constexpr int kShared = kCount < 4 ? kCount : 4;
#pragma unroll
    for (int group = 0; group < kCount; group += kShared) {
      const Philox drawn = philox(static_cast<uint64_t>(flat + group) / 4, step, seed);
      const bool upper = kShared == 2 && flat % 4 != 0;
#pragma unroll
      for (int i = 0; i < kShared; ++i) {
        const int e = group + i;
        const A threshold = A(philox_threshold(upper ? drawn.word[(i + 2) % 4] : drawn.word[i])) * size[e];
        plus[e] = sum[e] > threshold || sum[e] == size[e];
        minus[e] = sum[e] < threshold || sum[e] == -size[e];
      }
    }
  }
  // A factor of 0 is multiplied by, not skipped: a NaN or an infinity reaches the direction.
  __device__ void add_kept(const Pack<S>& pack, A leak, A (&to)[kCount]) const {
#pragma unroll
    for (int e = 0; e < kCount; ++e) {
      const A x = widen(pack.element[e]);
      to[e] = fma((x > 0 ? plus[e] : minus[e]) ? A(1) : leak, x, to[e]);
    }
  }
};

// Element k of the chunk in float64.
template <class S, int kWords>
__device__ __noinline__ double wide_drop(const Walk<kWords>& walk, int k, const Drawing& drawing) {
  double sum = 0, size = 0, kept = 0;
  for (int t = 0; t < walk.table->tasks; ++t) {
    const S* row = row_of_chunk<S>(walk, t);
    const double x = row ? static_cast<double>(widen(read(row + k))) : 0.0;
    sum += x;
    size += x < 0 ? -x : x;
  }
  const auto place = static_cast<uint64_t>(walk.flat() + k);
  const Philox drawn = philox(place / 4, static_cast<uint64_t>(*drawing.step), static_cast<uint64_t>(*drawing.seed));
  const uint32_t word = place % 4 == 0   ? drawn.word[0]
                        : place % 4 == 1 ? drawn.word[1]
                        : place % 4 == 2 ? drawn.word[2]
                                         : drawn.word[3];
  const double threshold = static_cast<double>(philox_threshold(word)) * size;
  const bool plus = sum > threshold || sum == size, minus = sum < threshold || sum == -size;
  for (int t = 0; t < walk.table->tasks; ++t) {
    if (const S* row = row_of_chunk<S>(walk, t)) {
      const auto x = static_cast<double>(widen(read(row + k)));
      kept = fma((x > 0 ? plus : minus) ? 1.0 : drawing.leaks[t], x, kept);
    }
  }
  return kept;
}

// A chunk of the direction. kMany: more tasks than kRows, which are then taken kHeld at a time, twice.
template <bool kMany, int kRows, bool kWhole, class S, int kWords>
__device__ void graddrop_chunk(const Walk<kWords>& walk, const Access<kWhole>& access, uint64_t seed, uint64_t step,
                               const accumulator_t<S>* leak, const Drawing& drawing, S* out) {
  constexpr int kCount = Pack<S>::kCount, kStep = kCount * kWarp;
  constexpr int kHeld = kMany ? 4 : kRows;  // eight would spill where the signs of eight elements live beside them
  [[maybe_unused]] constexpr int kUnroll = kWhole && kRows == 2 ? 2 : 1;
  const int length = kWhole ? kChunk : walk.length();
  const int last = kMany ? walk.table->tasks : 1;
#pragma unroll kUnroll
  for (int s = 0; s < (length + kStep - 1) / kStep; ++s) {
    const int at = s * kStep + lane_of_thread() * kCount;
    Pack<S> pack[kHeld];
    Signs<S> signs;
    for (int first = 0; first < last; first += kHeld) {
      read_rows(pack, walk, first, at, length, access);
#pragma unroll
      for (int r = 0; r < kHeld; ++r)
        if (row_of_chunk<S>(walk, first + r)) signs.add(pack[r]);
    }
    [[maybe_unused]] const unsigned fitting = signs.fitting();
    signs.draw(walk.flat() + at, seed, step);
    accumulator_t<S> kept[kCount];
#pragma unroll
    for (int e = 0; e < kCount; ++e) kept[e] = 0;
    for (int first = 0; first < last; first += kHeld) {
      if constexpr (kMany) read_rows(pack, walk, first, at, length, access);
#pragma unroll
      for (int r = 0; r < kHeld; ++r)
        if (row_of_chunk<S>(walk, first + r)) signs.add_kept(pack[r], leak[first + r], kept);
    }
    if constexpr (std::is_same_v<accumulator_t<S>, float>) {
#pragma unroll
      for (int e = 0; e < kCount; ++e)
        if (!(fitting >> e & 1 && is_finite(kept[e])) && at + e < length)
          kept[e] = static_cast<float>(wide_drop<S>(walk, at + e, drawing));
    }
    write_sums(kept, out + walk.flat(), at, length, access.out_aligned);
  }
}

// Grid: the segments of the portion.
template <class S, int kRows, bool kMany, int kWords>
__global__ void __launch_bounds__(kThreads, 4)
    graddrop_kernel(const __grid_constant__ Table<kWords> table, const Portion portion, const Drawing drawing, S* out) {
  using A = accumulator_t<S>;
  __shared__ A leak[kMany ? kMaxListTasks : kRows];
  for (int t = static_cast<int>(threadIdx.x); t < table.tasks; t += kThreads) leak[t] = static_cast<A>(drawing.leaks[t]);
  __syncthreads();
  const A* const leaks = leak;
  const auto seed = static_cast<uint64_t>(*drawing.seed), step = static_cast<uint64_t>(*drawing.step);
  const int64_t segment = portion.first + static_cast<int64_t>(blockIdx.x);
  for_each_chunk<S>(table, portion, segment, out, [&](const auto& walk, const auto& access) {
    graddrop_chunk<kMany, kRows>(walk, access, seed, step, leaks, drawing, out);
  });
}

// out: flat, of plan.flat_length() elements. rows: tasks * P task-major, null where absent.
template <class S>
void graddrop(const Plan& plan, const std::vector<const void*>& rows, int64_t tasks, const Drawing& drawing, void* out,
              Stream stream) {
  with_rows(tasks, [&]<int kRows, bool kMany>() {
    for_each_table(plan, rows, tasks, [&]<int kWords>(const Table<kWords>& table, const Portion& portion) {
      const dim3 grid(static_cast<unsigned>(portion.last - portion.first));
      launch(graddrop_kernel<S, kRows, kMany, kWords>, grid, kThreads, stream, table, portion, drawing,
             static_cast<S*>(out));
    });
  });
}

}  // namespace mtlkernels::cuda
