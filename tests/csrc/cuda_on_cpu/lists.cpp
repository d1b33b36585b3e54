// The CUDA kernels over gradient lists against float64, on the CPU. The slower sanitizer gets fewer cases and types.
#include "../../../csrc/common/gram_noise.h"
#include "../../../csrc/cuda/combine.cuh"
#include "../../../csrc/cuda/gram.cuh"
#include "cases.h"

namespace {

template <class S>
std::vector<double> gram_of(const Data<S>& data) {
  const int64_t T = data.made.tasks;
  std::vector<double> K(T * T, NAN), workspace(gram_workspace(data.gram_plan, T), NAN);
  gram<S>(data.gram_plan, data.rows, T, K.data(), workspace.data(), -1, nullptr);
  const int64_t counters = gram_tickets(data.gram_plan, T);
  expect(counters <= kTickets, "%s: %ld counters", data.made.name.c_str(), static_cast<long>(counters));
  if (counters) {
    std::vector<double> once(T * T, NAN), clean(workspace.size(), NAN);
    gram<S>(data.gram_plan, data.rows, T, once.data(), clean.data(), 5, nullptr);
    expect(std::memcmp(once.data(), K.data(), T * T * sizeof(double)) == 0, "%s: one launch gives other bits",
           data.made.name.c_str());
  }
  return K;
}

template <class S>
void check_gram(const Data<S>& data) {
  const Case& c = data.made;
  const int64_t T = c.tasks;
  const std::vector<double> K = gram_of(data);
  std::vector<long double> expected(T * T, 0);
  for (int64_t i = 0; i < T; ++i)
    for (int64_t j = 0; j <= i; ++j)
      for (size_t p = 0; p < c.numel.size(); ++p)
        if (const S *x = data.row(i, p), *y = data.row(j, p); x && y)
          for (int64_t k = 0; k < c.numel[p]; ++k)
            expected[i * T + j] += static_cast<long double>(widen(x[k])) * static_cast<long double>(widen(y[k]));
  for (int64_t i = 0; i < T; ++i) {
    for (int64_t j = 0; j <= i; ++j) {
      const double actual = K[i * T + j], wanted = static_cast<double>(expected[i * T + j]);
      const double ii = static_cast<double>(expected[i * T + i]), jj = static_cast<double>(expected[j * T + j]);
      const double scale = std::sqrt(ii) * std::sqrt(jj);
      const bool good = std::isfinite(scale) ? std::fabs(actual - wanted) <= kGramNoise * scale
                        : i == j             ? !std::isfinite(actual)
                                             : true;
      expect(good, "%s: K[%ld,%ld] = %g, expected %g", c.name.c_str(), static_cast<long>(i), static_cast<long>(j), actual,
             wanted);
      expect(actual == K[j * T + i] || std::isnan(actual), "%s: K is not symmetric", c.name.c_str());
    }
  }
}

using Weight = double (*)(int64_t);
double ordinary(int64_t t) { return static_cast<float>(std::cos(1.0 + static_cast<double>(t))); }
// Beside them gradients of about 1e-38, 1 and 1e30 have ordinary products.
double extreme(int64_t t) { return t % 3 == 0 ? -0x1p126 : t % 3 == 1 ? 0.5 : 0x1p-110; }

// O: of `out`. offset: elements that it lies off a 16-byte boundary. Strided float32 weights where wide is false.
template <class O, class S>
void check_combine(const Data<S>& data, double beta, int64_t offset, bool wide, Weight weight = ordinary) {
  const Case& c = data.made;
  const int64_t T = c.tasks, length = data.plan.flat_length();
  std::vector<double> weights;
  std::vector<float> strided;
  for (int64_t t = 0; t < T; ++t) {
    weights.push_back(weight(t));
    strided.insert(strided.end(), {static_cast<float>(weights.back()), NAN});
  }
  const std::unique_ptr<O[]> memory(new O[offset + length]);
  O* out = memory.get() + offset;
  const double size_before = outside_float(beta) ? 1 / beta : 1;
  for (int64_t k = 0; k < length; ++k)
    out[k] = narrow(static_cast<accumulator_t<O>>(beta == 0 ? NAN : size_before * std::sin(static_cast<double>(k))), O{});
  const std::vector<O> before(out, out + length);
  const WeightVector vector = wide ? WeightVector{weights.data(), 1, true} : WeightVector{strided.data(), 2, false};
  combine<S, O>(data.plan, data.rows, T, vector, out, beta, nullptr);
  for (size_t p = 0; p < c.numel.size(); ++p) {
    for (int64_t k = data.plan.offset[p]; k < data.plan.offset[p + 1]; ++k) {
      const int64_t at = k - data.plan.offset[p];
      const auto actual = static_cast<double>(widen(out[k]));
      if (at >= data.plan.numel[p]) {
        expect(actual == 0, "%s: padding is %g", c.name.c_str(), actual);
        continue;
      }
      double sum = beta == 0 ? 0 : beta * static_cast<double>(widen(before[k])), size = std::fabs(sum);
      for (int64_t t = 0; t < T; ++t) {
        if (!data.row(t, p)) continue;
        const double term = weights[t] * static_cast<double>(widen(data.row(t, p)[at]));
        sum += term;
        size += std::fabs(term);
      }
      const bool in_double = std::is_same_v<S, double> || weight == extreme || outside_float(beta);
      const double rounding = in_double ? 0x1p-52 : 0x1p-23;
      const double last = 0.5001 * kEpsilon<O> * std::fmax(std::fabs(actual), kSmallestNormal<O>);
      const double bound = last + rounding * static_cast<double>(T + 1) * size;
      expect(std::fabs(actual - sum) <= bound, "%s: out[%ld] = %g, expected %g", c.name.c_str(), static_cast<long>(k),
             actual, sum);
    }
  }
}

template <class S>
void check_case(const Case& c) {
  const Data<S> data(c);
  check_gram(data);
  check_combine<S>(data, 0.0, 0, true);
  check_combine<S>(data, 0.5, 0, false);
  if constexpr (sizeof(S) == 2) check_combine<float>(data, c.tasks % 2 ? 0.0 : -0.5, 0, true);
}

// Factors that float32 cannot hold, or can but not their products.
template <class S>
void check_wide(Case c) {
  c.name += " of very different sizes";
  c.value = [](int64_t t, int64_t, double x) { return t % 3 == 0 ? x * 1e-38 : t % 3 == 1 ? x : x * 1e30; };
  const Data<S> data(c);
  for (const bool wide : {true, false}) check_combine<S>(data, 0.0, 1, wide, extreme);
  check_combine<S>(data, 0.5, 0, true, extreme);
  check_combine<float>(data, 0.5, 0, true, extreme);
  c.value = [](int64_t, int64_t, double x) { return x; };
  for (const double beta : {1e37, 1e-31, -1e38}) check_combine<float>(Data<S>(c), beta, 0, true);
}

double plus_plus_minus(int64_t t) { return t == 2 ? -1.0 : t < 2 ? 1.0 : 0x1p-10; }

// Sums that fit although a part of them does not.
template <class S>
void check_overflow(Case c) {
  c.name += " whose sums overflow";
  c.value = [](int64_t t, int64_t, double x) { return t < 3 ? 3e38 : x; };
  const Data<S> data(c);
  for (const double beta : {0.0, 0.5}) check_combine<S>(data, beta, 0, true, plus_plus_minus);
  check_combine<float>(data, 0.5, 1, true, plus_plus_minus);
}

// The same elements give the same bits wherever they lie, and again.
template <class S>
void check_alignment(Case c) {
  const Data<S> aligned(c);
  const std::vector<double> K = gram_of(aligned);
  expect(gram_of(aligned) == K, "%s: another run, other bits", c.name.c_str());
  c.offset = 1;
  c.name += " misaligned";
  const Data<S> misaligned(c);
  expect(gram_of(misaligned) == K, "%s: other bits", c.name.c_str());
  check_combine<S>(misaligned, 0.0, 0, true);
  check_combine<S>(aligned, 0.5, 1, true);
  if constexpr (sizeof(S) == 2) check_combine<float>(misaligned, 0.0, 1, true);
}

template <class S>
void check_range() {
  const std::vector<int64_t> numel = {5, 2100, 1024};
  Case c{"huge and tiny rows", 4, numel};
  c.value = [](int64_t t, int64_t, double x) { return t == 0 ? x * 1e30 : t == 1 ? x * 1e-28 : t == 2 ? 0.0 : x; };
  check_gram(Data<S>(c));
  if (kQuick) return;
  c.name = "one huge element";
  c.value = [](int64_t t, int64_t, double x) { return t == 1 && x > 3.0 ? 1e25 : x; };
  check_gram(Data<S>(c));
  c.name = "infinite row and absent blocks";
  c.absent = [](int64_t t, int64_t p) { return t == 2 && p != 1; };
  c.value = [](int64_t t, int64_t p, double x) { return t == 1 && p == 0 ? INFINITY : x; };
  const Data<S> data(c);
  check_gram(data);
  const std::vector<double> K = gram_of(data);
  expect(std::isfinite(K[2 * 4 + 1]), "an absent block took part in a product with infinity");
}

// Every number of tasks for one type of four bytes and one of two; the others differ in how an element is read and written.
template <class S>
void check_all() {
  constexpr bool kEvery = std::is_same_v<S, float> || std::is_same_v<S, BFloat16>;
  for (const int64_t T : kQuick   ? std::vector<int64_t>{3, 9}
                         : kEvery ? std::vector<int64_t>{1, 2, 3, 4, 5, 6, 7, 8, 9, 17, 40}
                                  : std::vector<int64_t>{2, 8, 9}) {
    const std::string tasks = std::to_string(T) + " tasks";
    check_case<S>({tasks, T, {67, 3, 1100}});
    check_case<S>({tasks + ", segments of two blocks", T, {4100, 30, 5000}, 2});
    Case some{tasks + ", absent", T, {5, 1030, 17, 600, 1}};
    some.absent = [](int64_t t, int64_t p) { return (t + p) % 3 == 0 || (p == 2 && t != 0); };
    check_case<S>(some);
  }
  if (sizeof(S) == 4) check_long_lists([](const Case& c) { check_case<S>(c); });
  check_case<S>({"nothing", 2, {0, 0}});
  check_case<S>({"zero sizes first, middle and last", 2, {0, 5, 0, 7, 0}});
  check_alignment<S>({"three tensors", 3, {16, 1029, 4096}});
  if (!std::is_same_v<S, Float16>) check_range<S>();
  if constexpr (kEvery) {
    check_wide<S>({"tensors", 4, {5, 1030, 16}});
    check_wide<S>({"tensors, more than a thread holds", 10, {5, 30, 1}});
    check_overflow<S>({"tensors", 4, {5, 1030, 16}});
    check_overflow<S>({"tensors, more than a thread holds", 10, {5, 1030, 1}});
  }
  if (kQuick || !kEvery) return;
  check_case<S>({"a table's edge inside a segment of several blocks", 9, std::vector<int64_t>(40, 700), 3});
  for (const int64_t n : {1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 1023, 1024, 1025, 4095, 4096, 4097, 9000})
    check_case<S>({std::to_string(n) + " elements", 3, {n}});
}

}  // namespace

int main() {
  expect(gram_tickets(make_plan(std::vector<int64_t>(130, 19), gram_segments(2)), 2) == 0, "one launch for two tables");
  const Plan between =
      make_plan(std::vector<int64_t>(40, 19), gram_segments(2));  // it fits the large table, not the small one
  expect(gram_tickets(between, 2) > 0, "two launches for one table");
  new_driver = false;
  expect(gram_tickets(between, 2) == 0, "a table that an old driver does not take");
  new_driver = true;
  check_all<float>();
  check_all<BFloat16>();
  if constexpr (!kQuick) {
    check_all<double>();
    check_all<Float16>();
  }
  const Data<float> many(kManyTasks);
  const size_t launch = blocks_launched.size();
  check_combine<float>(many, 0.0, 0, true);
  expect_blocks("combine", launch, 30);
  std::printf("%d checks, %d failed\n", checks, failures);
  return failures ? 1 : 0;
}
