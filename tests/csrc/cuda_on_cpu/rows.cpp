// The CUDA kernels of the row methods on the CPU, bit for bit against the rule written an element at a time.
#include "../../../csrc/cuda/graddrop.cuh"
#include "../../../csrc/cuda/trimmed.cuh"
#include "cases.h"

namespace {

constexpr uint64_t kSeed = 0x89abcdef01234567u, kStep = 0x123456789u;

template <class S>
bool same_bits(S a, S b) {
  return std::memcmp(&a, &b, sizeof(S)) == 0 || (std::isnan(widen(a)) && std::isnan(widen(b)));
}

// Runs the kernel into memory `offset` elements off a 16-byte boundary and compares it with expected(param, at, flat).
template <class S, class Kernel, class Expected>
void check_direction(const Data<S>& data, int64_t offset, const Kernel& kernel, const Expected& expected) {
  const std::unique_ptr<S[]> memory(new S[offset + data.plan.flat_length()]);
  S* out = memory.get() + offset;
  std::fill(out, out + data.plan.flat_length(), narrow(accumulator_t<S>(NAN), S{}));
  kernel(out);
  for (size_t p = 0; p < data.made.numel.size(); ++p) {
    for (int64_t k = data.plan.offset[p]; k < data.plan.offset[p + 1]; ++k) {
      const int64_t at = k - data.plan.offset[p];
      const S wanted = at < data.plan.numel[p] ? expected(p, at, k) : S{};
      expect(same_bits(out[k], wanted), "%s: out[%ld] = %g, expected %g", data.made.name.c_str(), static_cast<long>(k),
             static_cast<double>(widen(out[k])), static_cast<double>(widen(wanted)));
    }
  }
}

// The direction of one element with sums of type A, and the sum of sizes.
template <class A, class S>
std::pair<A, A> graddrop_sums(const Data<S>& data, const std::vector<double>& leaks, int64_t param, int64_t at,
                              int64_t flat) {
  A sum = 0, size = 0, kept = 0;
  for (int64_t t = 0; t < data.made.tasks; ++t) {
    if (!data.row(t, param)) continue;
    const A x = widen(data.row(t, param)[at]);
    sum += x;
    size += std::fabs(x);
  }
  const int64_t m = philox(static_cast<uint64_t>(flat) / 4, kStep, kSeed).word[flat % 4] >> 8;
  const A threshold = static_cast<A>(std::ldexp(static_cast<double>(2 * m + 1 - (1 << 24)), -24)) * size;
  for (int64_t t = 0; t < data.made.tasks; ++t) {
    if (!data.row(t, param)) continue;
    const A x = widen(data.row(t, param)[at]);
    const bool drawn = x > 0 ? sum > threshold || sum == size : sum < threshold || sum == -size;
    kept = std::fma(drawn ? A(1) : static_cast<A>(leaks[t]), x, kept);
  }
  return {kept, size};
}

template <class S>
S graddrop_rule(const Data<S>& data, const std::vector<double>& leaks, int64_t param, int64_t at, int64_t flat) {
  using A = accumulator_t<S>;
  auto [kept, size] = graddrop_sums<A>(data, leaks, param, at, flat);
  if (!std::isfinite(kept) || !std::isfinite(size))
    kept = static_cast<A>(graddrop_sums<double>(data, leaks, param, at, flat).first);
  return narrow(kept, S{});
}

template <class S>
void check_graddrop(const Data<S>& data, bool leaking, int64_t offset) {
  std::vector<double> leaks;
  for (int64_t t = 0; t < data.made.tasks; ++t) leaks.push_back(leaking ? 1.0 / static_cast<double>(t + 2) : 0.0);
  const auto seed = static_cast<int64_t>(kSeed), step = static_cast<int64_t>(kStep);
  const Drawing drawing{&seed, &step, leaks.data()};
  check_direction(
      data, offset, [&](S* out) { graddrop<S>(data.plan, data.rows, data.made.tasks, drawing, out, nullptr); },
      [&](int64_t p, int64_t at, int64_t flat) { return graddrop_rule(data, leaks, p, at, flat); });
}

// The mean of one column: the tasks in the order of their values, the outer ones left out, the rest in their own order.
template <class S>
S trimmed_rule(const Data<S>& data, int64_t trim, int64_t param, int64_t at) {
  using A = accumulator_t<S>;
  const int64_t T = data.made.tasks;
  std::vector<std::pair<A, int64_t>> column;
  for (int64_t t = 0; t < T; ++t) {
    column.emplace_back(data.row(t, param) ? widen(data.row(t, param)[at]) : A(0), t);
    if (std::isnan(column.back().first)) return narrow(A(NAN), S{});
  }
  std::stable_sort(column.begin(), column.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  column = {column.begin() + trim, column.end() - trim};
  std::sort(column.begin(), column.end(), [](const auto& a, const auto& b) { return a.second < b.second; });
  A total = 0;
  double wide = 0;
  for (const auto& [value, task] : column) total += value, wide += static_cast<double>(value);
  A mean = total / static_cast<A>(T - 2 * trim);
  if (!std::isfinite(mean)) mean = static_cast<A>(wide / static_cast<double>(T - 2 * trim));
  return narrow(mean, S{});
}

template <class S>
void check_trimmed(const Data<S>& data, int64_t trim, int64_t offset) {
  check_direction(
      data, offset, [&](S* out) { trimmed_mean<S>(data.plan, data.rows, data.made.tasks, trim, out, nullptr); },
      [&](int64_t p, int64_t at, int64_t) { return trimmed_rule(data, trim, p, at); });
}

// Every alignment of the rows and of the direction.
template <class S>
void check_case(Case c) {
  const Data<S> aligned(c);
  check_graddrop(aligned, false, 0);
  check_graddrop(aligned, true, 1);
  for (const int64_t trim : {int64_t{0}, (c.tasks - 1) / 2}) check_trimmed(aligned, trim, trim ? 1 : 0);
  c.offset = 1;
  c.name += ", misaligned";
  check_graddrop(Data<S>(c), false, 0);
  check_trimmed(Data<S>(c), (c.tasks - 1) / 3, 0);
}

template <class S>
void check_all() {
  for (const int64_t T : kQuick ? std::vector<int64_t>{3, 9} : std::vector<int64_t>{1, 2, 3, 4, 8, 9, 17}) {
    const std::string tasks = std::to_string(T) + " tasks";
    check_case<S>({tasks, T, {67, 3, 1100}});
    Case some{tasks + ", absent", T, {5, 1030, 17, 600, 1}};
    some.absent = [](int64_t t, int64_t p) { return (t + p) % 3 == 0 || (p == 2 && t != 0); };
    check_case<S>(some);
  }
  check_case<S>({"zero sizes first, middle and last", 2, {0, 5, 0, 7, 0}});
  if (sizeof(S) == 4) check_long_lists([](const Case& c) { check_case<S>(c); });
  if (kQuick) return;
  check_case<S>({"segments of two blocks", 3, {4100, 30, 5000}, 2});
  check_case<S>({"a table's edge inside a segment of several blocks", 9, std::vector<int64_t>(40, 700), 3});
  Case hard{"ties, zeros and what is not finite", 5, {1500, 9}};
  hard.value = [](int64_t t, int64_t p, double x) {
    return p == 1 ? (t == 1 ? INFINITY : t == 2 ? -INFINITY : x) : x > 2.5 ? NAN : x < -2.5 ? INFINITY : std::round(x);
  };
  check_case<S>(hard);
  for (const int64_t T : {3, 11}) {
    Case huge{"sums that overflow", T, {1100, 5}};
    huge.value = [](int64_t t, int64_t, double x) { return std::fabs(x) < 1 ? x : t % 3 == 2 ? -3e38 : 3e38; };
    check_case<S>(huge);
  }
  Case tiny{"denormals", 3, {1100}};
  tiny.value = [](int64_t, int64_t, double x) { return std::round(x) * (std::is_same_v<S, Float16> ? 0x1p-24 : 0x1p-133); };
  check_case<S>(tiny);
}

}  // namespace

int main() {
  check_all<float>();
  check_all<double>();
  if constexpr (!kQuick) {
    check_all<BFloat16>();
    check_all<Float16>();
  }
  const Data<float> many(kManyTasks);
  size_t launch = blocks_launched.size();
  check_graddrop(many, false, 0);
  expect_blocks("graddrop", launch, 30);
  launch = blocks_launched.size();
  check_trimmed(many, 1, 0);
  expect_blocks("trimmed_mean", launch, 30);
  std::printf("%d checks, %d failed\n", checks, failures);
  return failures ? 1 : 0;
}
