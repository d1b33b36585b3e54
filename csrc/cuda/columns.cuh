// What the kernels with one answer an element share: a warp's chunks of the flat space, the rows of a chunk 16 bytes
// at a time, and the padding. Each warp writes its own chunks, so nothing is reduced and nothing waits.
#pragma once

#include <type_traits>

#include "table.cuh"

namespace mtlkernels::cuda {

// How a chunk may be read and written. kWhole: all kChunk elements are there and every address is a multiple of 16.
template <bool kWhole>
struct Access {
  static constexpr bool whole = kWhole;
  bool rows_aligned, out_aligned;
};

// Zeros what pads the chunk's parameter, where this is its last chunk.
template <class O, int kWords>
__device__ void clear_padding(const Walk<kWords>& walk, O* out) {
  const int64_t numel = walk.table->numel(walk.param);
  if (walk.begin + walk.length() != numel) return;
  for (int64_t k = numel + lane_of_thread(); k < align_up(numel); k += kWarp) out[walk.table->offset(walk.param) + k] = O{};
}

// Calls chunk(walk, access) for every chunk of the segment that is this warp's, and zeros what pads a parameter.
// S: of the rows, O: of `out`.
template <class S, class O, int kWords, class Chunk>
__device__ void for_each_chunk(const Table<kWords>& table, const Portion& portion, int64_t segment, O* out,
                               const Chunk& chunk) {
  const bool out_aligned = is_aligned(out);
  Walk<kWords> walk(table, portion, segment);
  for (walk.skip(warp_of_thread()); walk.more(); walk.skip(kWarps)) {
    bool aligned = true;
    for (int t = 0; t < table.tasks; ++t) aligned = aligned && is_aligned(table.template row<S>(walk.param, t));
    if (aligned && out_aligned && walk.length() == kChunk) {
      chunk(walk, Access<true>{true, true});
    } else {
      chunk(walk, Access<false>{aligned, out_aligned});
    }
    clear_padding(walk, out);
  }
}

// A row of the chunk's parameter from the chunk on, or null: absent, or beyond the last task.
template <class S, int kWords>
__device__ const S* row_of_chunk(const Walk<kWords>& walk, int task) {
  const S* row = task < walk.table->tasks ? walk.table->template row<S>(walk.param, task) : nullptr;
  return row ? row + walk.begin : nullptr;
}

template <bool kWhole, class S>
__device__ Pack<S> read_row(const S* row, int at, int length, const Access<kWhole>& access) {
  if constexpr (kWhole) {
    return read_whole(row + at);
  } else {
    return read_pack(row, at, length, access.rows_aligned);
  }
}

// The packs of the tasks first .. first + kRows. Where a row is absent the pack is left as it is.
template <bool kWhole, class S, int kRows, int kWords>
__device__ void read_rows(Pack<S> (&pack)[kRows], const Walk<kWords>& walk, int first, int at, int length,
                          const Access<kWhole>& access) {
#pragma unroll
  for (int r = 0; r < kRows; ++r)
    if (const S* row = row_of_chunk<S>(walk, first + r)) pack[r] = read_row(row, at, length, access);
}

// Stores a thread's elements at, at + 1, ... of a run of `length`. They are one pack of rows and may be several of `out`.
template <class O, class A, int kCount>
__device__ void write_sums(const A (&sum)[kCount], O* run, int at, int length, bool aligned) {
#pragma unroll
  for (int first = 0; first < kCount; first += Pack<O>::kCount) {
    Pack<O> answer;
#pragma unroll
    for (int e = 0; e < Pack<O>::kCount; ++e) answer.element[e] = narrow(sum[first + e], O{});
    write_pack(answer, run, at + first, length, aligned);
  }
}

// Calls body<kRows, kMany>() with the rows that a thread holds at a time; kMany: there are more tasks than those.
template <class Body>
void with_rows(int64_t tasks, const Body& body) {
  if (tasks <= 2) return body.template operator()<2, false>();
  if (tasks <= 4) return body.template operator()<4, false>();
  if (tasks <= 8) return body.template operator()<8, false>();
  body.template operator()<8, true>();
}

}  // namespace mtlkernels::cuda
