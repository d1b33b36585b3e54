// Lists of gradients for the tests of the CUDA kernels, and the count of what was checked.
#pragma once

#include <cstdarg>
#include <functional>
#include <limits>
#include <memory>
#include <random>
#include <string>

#include "../../../csrc/cuda/table.cuh"

using namespace mtlkernels;
using namespace mtlkernels::cuda;

namespace {

#if defined(__SANITIZE_THREAD__)
constexpr bool kQuick = true;
#else
constexpr bool kQuick = false;
#endif

int failures = 0;
int checks = 0;

void expect(bool good, const char* format, ...) {
  ++checks;
  if (good) return;
  ++failures;
  va_list arguments;
  va_start(arguments, format);
  std::vfprintf(stderr, format, arguments);
  va_end(arguments);
  std::fputc('\n', stderr);
}

// What a case is made of; a row's own memory ends where the row does, so that a sanitizer sees one element too many.
struct Case {
  std::string name;
  int64_t tasks;
  std::vector<int64_t> numel;
  int64_t blocks_per_segment = 1;
  int64_t offset = 0;  // elements off a 16-byte boundary
  std::function<bool(int64_t, int64_t)> absent = [](int64_t, int64_t) { return false; };
  std::function<double(int64_t, int64_t, double)> value = [](int64_t, int64_t, double x) { return x; };  // of N(0, 1)
};

template <class S>
struct Data {
  const Case& made;
  Plan plan, gram_plan;
  std::vector<std::unique_ptr<S[]>> memory;
  std::vector<const void*> rows;

  explicit Data(const Case& c) : made(c) {
    std::mt19937 generator(7);
    std::normal_distribution<double> normal;
    const auto params = static_cast<int64_t>(c.numel.size());
    std::vector<int64_t> numel(params, 0);
    for (int64_t t = 0; t < c.tasks; ++t) {
      for (int64_t p = 0; p < params; ++p) {
        rows.push_back(nullptr);
        if (c.absent(t, p) || c.numel[p] == 0) continue;
        numel[p] = c.numel[p];
        memory.emplace_back(new S[c.offset + c.numel[p]]);
        S* row = memory.back().get() + c.offset;
        for (int64_t k = 0; k < c.numel[p]; ++k)
          row[k] = narrow(static_cast<accumulator_t<S>>(c.value(t, p, normal(generator))), S{});
        rows.back() = row;
      }
    }
    plan = coarser(make_plan(numel, row_segments(c.tasks)));
    gram_plan = coarser(make_plan(numel, gram_segments(c.tasks)));
  }
  Plan coarser(Plan cut) const {
    cut.blocks_per_segment *= made.blocks_per_segment;
    cut.segments = (cut.segments + made.blocks_per_segment - 1) / made.blocks_per_segment;
    return cut;
  }
  const S* row(int64_t t, int64_t p) const { return static_cast<const S*>(rows[t * made.numel.size() + p]); }
};

// Lists that take three tables, as a new driver takes them and in an old one's small tables.
template <class Check>
void check_long_lists(const Check& check) {
  for (const int64_t T : kQuick ? std::vector<int64_t>{2} : std::vector<int64_t>{1, 2, 3, 4, 5, 6, 7, 8, 9, 20}) {
    for (const bool driver : {true, false}) {
      new_driver = driver;
      const std::string name = std::to_string(T) + " tasks, longer than every table" + (driver ? "" : ", old driver");
      check(Case{name, T, std::vector<int64_t>(2 * table_capacity(kLargeTable, T) + 1, 5)});
    }
  }
  new_driver = true;
}

// 100 tasks, two of them present, on 30 blocks of the plan: of its Gram matrix 15 segments of two fit the workspace.
inline const Case kManyTasks = [] {
  Case many{"many tasks", 100, {30 * kBlock}};
  many.absent = [](int64_t t, int64_t) { return t % 70 != 3; };
  return many;
}();

// The blocks of the first launch since `launch`.
inline void expect_blocks(const char* op, size_t launch, unsigned wanted) {
  expect(blocks_launched.at(launch) == wanted, "%s of many tasks: %u blocks in place of %u", op, blocks_launched.at(launch),
         wanted);
}

template <class S> constexpr double kEpsilon = 0;
template <> constexpr double kEpsilon<float> = 0x1p-23;
template <> constexpr double kEpsilon<double> = 0x1p-52;
template <> constexpr double kEpsilon<BFloat16> = 0x1p-7;
template <> constexpr double kEpsilon<Float16> = 0x1p-10;
// Below it rounding is absolute.
template <class S> constexpr double kSmallestNormal = std::is_same_v<S, Float16> ? 0x1p-14 : 0x1p-126;

}  // namespace
