// States as long as the gradients on the GPU: T rows of accumulators in the flat space, moved by one pass over the
// gradients and measured. An element whose new value would not be finite stays as it was, and the answer says so: one
// bad step must not spoil every later one. Padding is neither read nor written.
//
// Bytes: rows and state read once, state written once; track_gram reads the state again for its Gram matrix. What excess
// measures is added up in the accumulator's type over a chunk of a row, 1024 elements, and in float64 above.
#pragma once

#include <cmath>

#include "columns.cuh"
#include "gram.cuh"

namespace mtlkernels::cuda {

// Calls visit(task, row or null, state, length, aligned) for every row of every chunk of the segment that is this warp's.
template <class S, int kWords, class Visit>
__device__ void for_each_row(const Table<kWords>& table, const Portion& portion, int64_t segment, accumulator_t<S>* state,
                             int64_t stride, const Visit& visit) {
  Walk<kWords> walk(table, portion, segment);
  for (walk.skip(warp_of_thread()); walk.more(); walk.skip(kWarps)) {
    for (int t = 0; t < table.tasks; ++t) {
      const S* row = row_of_chunk<S>(walk, t);
      accumulator_t<S>* own = state + t * stride + walk.flat();
      visit(t, row, own, walk.length(), is_aligned(row) && is_aligned(own));
    }
  }
}

// A thread's pack of elements of a row, and the state's beside it. kWhole: all are there, on 16-byte boundaries.
template <bool kWhole, class S, class Step>
__device__ void move_pack(const S* row, accumulator_t<S>* state, int at, int length, const Step& step) {
  using A = accumulator_t<S>;
  constexpr int kCount = Pack<S>::kCount;
  Pack<S> pack = {};
  if (row) pack = read_pack(row, at, length, kWhole);
#pragma unroll
  for (int first = 0; first < kCount; first += Pack<A>::kCount) {
    A* const place = state + at + first;
    Pack<A> own = {};
    if constexpr (kWhole) own = read_own(place);
#pragma unroll
    for (int e = 0; e < Pack<A>::kCount; ++e) {
      if (!kWhole && at + first + e >= length) continue;
      const A moved = step(A(widen(pack.element[first + e])), kWhole ? own.element[e] : place[e]);
      if constexpr (kWhole) {
        own.element[e] = moved;
      } else {
        place[e] = moved;
      }
    }
    if constexpr (kWhole) *reinterpret_cast<uint4*>(place) = bits_as<uint4>(own);
  }
}

// Replaces a state's elements by step(x, element) of the row's, x = 0 where the row is null.
template <class S, class Step>
__device__ void move_state(const S* row, accumulator_t<S>* state, int length, bool aligned, const Step& step) {
  constexpr int kCount = Pack<S>::kCount;
#pragma unroll 2
  for (int at = lane_of_thread() * kCount; at < length; at += kCount * kWarp) {
    if (aligned && at + kCount <= length) {
      move_pack<true>(row, state, at, length, step);
    } else {
      move_pack<false>(row, state, at, length, step);
    }
  }
}

// What was measured of a task's part of a segment.
template <class X>
struct Measures {
  X* of;  // (tasks, segments)
  int64_t segments;
};

// state += rate (scale x - state). spoilt: whether a new value was not finite.
template <class S, int kWords>
__global__ void __launch_bounds__(kThreads)
    track_kernel(const __grid_constant__ Table<kWords> table, const Portion portion, const double* scale, const double* rate,
                 accumulator_t<S>* state, int64_t stride, const Measures<int> spoilt) {
  using A = accumulator_t<S>;
  __shared__ bool bad[kWarps][kMaxListTasks];
  for (int t = lane_of_thread(); t < table.tasks; t += kWarp) bad[warp_of_thread()][t] = false;
  __syncwarp();
  const double wide_share = *rate;
  const A share = static_cast<A>(wide_share);
  const int64_t segment = portion.first + blockIdx.x;
  for_each_row<S>(table, portion, segment, state, stride, [&](int t, const S* row, A* own, int length, bool aligned) {
    const double wide_factor = scale[t];
    const A factor = static_cast<A>(wide_factor);
    bool found = false;
    move_state(row, own, length, aligned, [&](A x, A old) {
      A moved = old + share * (factor * x - old);
      if (!is_finite(moved)) {  // a part may have overflowed
        const auto wide = static_cast<double>(old);
        moved = static_cast<A>(wide + wide_share * (wide_factor * static_cast<double>(x) - wide));
      }
      const bool finite = is_finite(moved);
      found = found || !finite;
      return finite ? moved : old;
    });
    found = __any_sync(0xffffffffu, found);
    if (found && lane_of_thread() == 0) bad[warp_of_thread()][t] = true;
  });
  __syncthreads();
  for (int t = static_cast<int>(threadIdx.x); t < table.tasks; t += kThreads) {
    int& all = spoilt.of[t * spoilt.segments + segment];
    bool found = portion.continued && segment == portion.first && all;
    for (int w = 0; w < kWarps; ++w) found = found || bad[w][t];
    all = found;
  }
}

// NaN in the row and the column of a task that was spoilt. Grid: the tasks.
static __global__ void __launch_bounds__(kThreads) spoil_kernel(const Measures<int> spoilt, int tasks, double* K) {
  const int task = static_cast<int>(blockIdx.x);
  bool found = false;
  for (int64_t s = threadIdx.x; s < spoilt.segments; s += kThreads) found = found || spoilt.of[task * spoilt.segments + s];
  if (!__syncthreads_or(found)) return;
  for (int i = static_cast<int>(threadIdx.x); i < tasks; i += kThreads) K[task * tasks + i] = K[i * tasks + task] = NAN;
}

// state += x^2; of[task] = sum x^2 / sqrt(state + eps), NaN where a new value is not finite. Where the square is 0 so is
// the term: with nothing seen yet and eps = 0 it would be 0 / 0.
template <class S, int kWords>
__global__ void __launch_bounds__(kThreads)
    excess_kernel(const __grid_constant__ Table<kWords> table, const Portion portion, double eps, accumulator_t<S>* state,
                  int64_t stride, const Measures<double> sums) {
  using A = accumulator_t<S>;
  __shared__ double totals[kWarps][kMaxListTasks];
  for (int t = lane_of_thread(); t < table.tasks; t += kWarp) totals[warp_of_thread()][t] = 0;
  __syncwarp();
  const int64_t segment = portion.first + blockIdx.x;
  for_each_row<S>(table, portion, segment, state, stride, [&](int t, const S* row, A* own, int length, bool aligned) {
    if (!row) return;
    A sum = 0;
    move_state(row, own, length, aligned, [&](A x, A old) {
      const A square = x * x, grown = old + square;
      const bool finite = grown - grown == 0;
      sum += square == 0 ? square : finite ? square / std::sqrt(grown + static_cast<A>(eps)) : A(NAN);
      return finite ? grown : old;
    });
    sum = warp_sum(sum);
    if (lane_of_thread() == 0) totals[warp_of_thread()][t] += static_cast<double>(sum);
  });
  __syncthreads();
  for (int t = static_cast<int>(threadIdx.x); t < table.tasks; t += kThreads) {
    double& all = sums.of[t * sums.segments + segment];
    double total = portion.continued && segment == portion.first ? all : 0.0;
    for (int w = 0; w < kWarps; ++w) total += totals[w][t];
    all = total;
  }
}

// e from the segments' sums, a warp a task: a lane's segments in order, then the lanes in a tree.
static __global__ void __launch_bounds__(kThreads) excess_finish_kernel(const Measures<double> sums, int tasks, double* e) {
  const int task = static_cast<int>(blockIdx.x) * kWarps + warp_of_thread();
  if (task >= tasks) return;
  double total = 0;
  for (int64_t s = lane_of_thread(); s < sums.segments; s += kWarp) total += sums.of[task * sums.segments + s];
  total = warp_sum(total);
  if (lane_of_thread() == 0) e[task] = total;
}

// Elements of workspace: ints for track_gram, doubles for excess.
inline int64_t measures(const Plan& plan, int64_t tasks) { return plan.segments * tasks; }

// plan: of the pass that moves the states; gram_plan: of their Gram matrix. state: (tasks, plan.flat_length()) accumulators.
// K: (tasks, tasks) of its new rows; row and column NaN of a task whose state would not have been finite. scale: a float64 a
// task, rate: one, on the device. spoilt: measures(plan) ints. workspace and ticket: as gram's.
template <class S>
void track_gram(const Plan& plan, const Plan& gram_plan, const std::vector<const void*>& rows, int64_t tasks,
                const double* scale, const double* rate, void* state, double* K, int* spoilt, double* workspace, int ticket,
                Stream stream) {
  using A = accumulator_t<S>;
  const Measures<int> marks{spoilt, plan.segments};
  A* const own = static_cast<A*>(state);
  for_each_table(plan, rows, tasks, [&]<int kWords>(const Table<kWords>& table, const Portion& portion) {
    const dim3 grid(static_cast<unsigned>(portion.last - portion.first));
    launch(track_kernel<S, kWords>, grid, kThreads, stream, table, portion, scale, rate, own, plan.flat_length(), marks);
  });
  std::vector<const void*> moved;
  for (int64_t t = 0; t < tasks; ++t)
    for (size_t p = 0; p < plan.numel.size(); ++p)
      moved.push_back(plan.numel[p] ? own + t * plan.flat_length() + plan.offset[p] : nullptr);
  gram<A>(gram_plan, moved, tasks, K, workspace, ticket, stream);
  launch(spoil_kernel, dim3(static_cast<unsigned>(tasks)), kThreads, stream, marks, static_cast<int>(tasks), K);
}

// e: (tasks). state as above. sums: measures() doubles.
template <class S>
void excess(const Plan& plan, const std::vector<const void*>& rows, int64_t tasks, double eps, void* state, double* e,
            double* sums, Stream stream) {
  const Measures<double> parts{sums, plan.segments};
  for_each_table(plan, rows, tasks, [&]<int kWords>(const Table<kWords>& table, const Portion& portion) {
    const dim3 grid(static_cast<unsigned>(portion.last - portion.first));
    launch(excess_kernel<S, kWords>, grid, kThreads, stream, table, portion, eps, static_cast<accumulator_t<S>*>(state),
           plan.flat_length(), parts);
  });
  const dim3 grid(static_cast<unsigned>((tasks + kWarps - 1) / kWarps));
  launch(excess_finish_kernel, grid, kThreads, stream, parts, static_cast<int>(tasks), e);
}

}  // namespace mtlkernels::cuda
