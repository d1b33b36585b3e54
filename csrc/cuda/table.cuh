// A list of tensors as kernels take it: pointers and sizes in a table passed by value, so that a launch copies nothing
// to the device and a CUDA graph holds its own copy. A list that does not fit takes more launches.
#pragma once

#include <algorithm>
#include <vector>

#include "../common/launches.h"
#include "numbers.cuh"

namespace mtlkernels::cuda {

// What a warp does at a time. A plan's pieces start at multiples of kAlign elements, so 16-byte loads of a chunk are
// possible wherever the tensor's own address allows them.
constexpr int kChunk = 1024;  // elements

// One parameter and its row of pointers must fit the smallest table.
constexpr int64_t kMaxListTasks = 448;

// Non-empty parameters, in order: where each starts in the flat space, its elements, and a pointer a task or null.
template <int kWords>
struct Table {
  int32_t params, tasks;
  int64_t word[kWords];

  __host__ __device__ int64_t offset(int p) const { return word[p]; }
  __host__ __device__ int64_t numel(int p) const { return word[params + p]; }
  __host__ __device__ int64_t flat_end() const { return offset(params - 1) + align_up(numel(params - 1)); }
  template <class S>
  __device__ const S* row(int p, int task) const {
    return reinterpret_cast<const S*>(word[2 * params + static_cast<int64_t>(p) * tasks + task]);
  }
};

inline bool fits_one_table(const Plan& plan, int64_t tasks) {
  const int64_t present = std::count_if(plan.numel.begin(), plan.numel.end(), [](int64_t n) { return n > 0; });
  return present <= table_capacity(largest_table(), tasks);
}

// Calls body(table, portion) for every launch that a plan takes, in flat order. rows: T * P task-major.
template <class Body>
void for_each_table(const Plan& plan, const std::vector<const void*>& rows, int64_t tasks, const Body& body) {
  const int64_t params = static_cast<int64_t>(plan.numel.size());
  const std::vector<int64_t> present = present_parameters(plan);
  const auto fill_table = [&](auto& table, int64_t begin, int64_t count) {
    table.params = static_cast<int32_t>(count);
    table.tasks = static_cast<int32_t>(tasks);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t p = present[begin + i];
      table.word[i] = plan.offset[p];
      table.word[count + i] = plan.numel[p];
      for (int64_t t = 0; t < tasks; ++t)
        table.word[2 * count + i * tasks + t] = reinterpret_cast<intptr_t>(rows[t * params + p]);
    }
  };
  for_each_launch(plan, present, table_capacity(largest_table(), tasks),
                  [&](int64_t begin, int64_t count, const Portion& portion) {
                    if (count <= table_capacity(kSmallTable, tasks)) {
                      Table<kSmallTable> table;
                      fill_table(table, begin, count);
                      body(table, portion);
                    } else {
                      Table<kLargeTable> table;
                      fill_table(table, begin, count);
                      body(table, portion);
                    }
                  });
}

// A warp's way through the chunks of a segment: chunk c of the segment belongs to warp c modulo the number of warps.
// The chunks depend on the sizes alone.
template <int kWords>
struct Walk {
  const Table<kWords>* table;
  int64_t end;  // of the segment, flat
  int param;
  int64_t begin;  // of the chunk, inside the parameter

  __device__ Walk(const Table<kWords>& list, const Portion& portion, int64_t segment) : table(&list) {
    const int64_t segment_begin = segment * portion.segment_length;
    const int64_t flat = segment_begin > list.offset(0) ? segment_begin : list.offset(0);
    end = segment_begin + portion.segment_length;
    int low = 0, high = list.params;  // the last parameter that starts at or before `flat`
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      (list.offset(middle) <= flat ? low : high) = middle;
    }
    param = low;
    begin = flat - list.offset(low);
  }
  __device__ int64_t flat() const { return table->offset(param) + begin; }
  __device__ bool more() const { return param < table->params && flat() < end; }
  __device__ int64_t piece_end() const {
    const int64_t room = end - table->offset(param);
    return room < table->numel(param) ? room : table->numel(param);
  }
  __device__ int length() const {
    const int64_t left = piece_end() - begin;
    return left < kChunk ? static_cast<int>(left) : kChunk;
  }
  __device__ void skip(int64_t chunks) {
    while (more()) {
      const int64_t left = (piece_end() - begin + kChunk - 1) / kChunk;
      if (chunks < left) {
        begin += chunks * kChunk;
        return;
      }
      chunks -= left;
      ++param;
      begin = 0;
    }
  }
};

}  // namespace mtlkernels::cuda
