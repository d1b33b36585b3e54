// The CUDA kernels of states as long as the gradients, on the CPU: the state bit for bit against the rule written an
// element at a time, what is measured of it against wider sums.
#include "../../../csrc/common/gram_noise.h"
#include "../../../csrc/cuda/state.cuh"
#include "cases.h"

namespace {

constexpr double kRate = 0.3, kEps = 1e-7;
constexpr int kPadding = 7;  // what is there must stay

template <class A>
bool same_bits(A a, A b) {
  return std::memcmp(&a, &b, sizeof(A)) == 0 || (std::isnan(a) && std::isnan(b));
}

// A state of numbers that are not negative, in memory `offset` elements off a 16-byte boundary.
template <class S>
struct State {
  using A = accumulator_t<S>;
  std::unique_ptr<A[]> memory;
  A* now;
  std::vector<A> wanted;

  State(const Data<S>& data, int64_t offset) {
    const int64_t length = data.plan.flat_length(), T = data.made.tasks;
    memory.reset(new A[offset + T * length]);
    now = memory.get() + offset;
    wanted.assign(T * length, A(kPadding));
    for (int64_t t = 0; t < T; ++t)
      for (size_t p = 0; p < data.plan.numel.size(); ++p)
        for (int64_t k = 0; k < data.plan.numel[p]; ++k)
          wanted[t * length + data.plan.offset[p] + k] = static_cast<A>(1 + std::sin(static_cast<double>(k + t)));
    std::copy(wanted.begin(), wanted.end(), now);
  }
};

// Calls body(task, x, element of the wanted state) for all elements; x is 0 where the row is absent, and there: whether not.
template <class S, class Body>
void for_each_element(const Data<S>& data, State<S>& state, const Body& body) {
  for (int64_t t = 0; t < data.made.tasks; ++t)
    for (size_t p = 0; p < data.plan.numel.size(); ++p)
      for (int64_t k = 0; k < data.plan.numel[p]; ++k) {
        const S* row = data.row(t, p);
        body(t, row ? accumulator_t<S>(widen(row[k])) : accumulator_t<S>(0), row != nullptr,
             state.wanted[t * data.plan.flat_length() + data.plan.offset[p] + k]);
      }
}

template <class S>
void expect_state(const Data<S>& data, const State<S>& state, const char* op) {
  for (size_t k = 0; k < state.wanted.size(); ++k)
    expect(same_bits(state.now[k], state.wanted[k]), "%s, %s: state[%zu] = %g, expected %g", data.made.name.c_str(), op, k,
           static_cast<double>(state.now[k]), static_cast<double>(state.wanted[k]));
}

template <class S>
void check_track(const Data<S>& data, int64_t offset) {
  using A = accumulator_t<S>;
  const int64_t T = data.made.tasks, length = data.plan.flat_length();
  State<S> state(data, offset);
  std::vector<double> scale, K(T * T, NAN), workspace(gram_workspace(data.gram_plan, T));
  for (int64_t t = 0; t < T; ++t) scale.push_back(0.5 + static_cast<double>(t % 5));
  std::vector<int> marks(measures(data.plan, T), -1);
  const int ticket = gram_tickets(data.gram_plan, T) ? 0 : -1;
  track_gram<S>(data.plan, data.gram_plan, data.rows, T, scale.data(), &kRate, state.now, K.data(), marks.data(),
                workspace.data(), ticket, nullptr);
  std::vector<char> spoilt(T, 0);
  for_each_element(data, state, [&](int64_t t, A x, bool, A& element) {
    A moved = element + static_cast<A>(kRate) * (static_cast<A>(scale[t]) * x - element);
    if (!std::isfinite(moved)) moved = static_cast<A>(element + kRate * (scale[t] * x - element));
    if (std::isfinite(moved))
      element = moved;
    else
      spoilt[t] = 1;
  });
  expect_state(data, state, "track_gram");
  std::vector<long double> dot(T * T, 0);
  for (int64_t i = 0; i < T; ++i)
    for (int64_t j = 0; j < T; ++j)
      for (size_t p = 0; p < data.plan.numel.size(); ++p)
        for (int64_t k = data.plan.offset[p]; k < data.plan.offset[p] + data.plan.numel[p]; ++k)
          dot[i * T + j] += static_cast<long double>(state.wanted[i * length + k]) * state.wanted[j * length + k];
  for (int64_t i = 0; i < T; ++i)
    for (int64_t j = 0; j < T; ++j) {
      const double scale_ij =
          std::sqrt(static_cast<double>(dot[i * T + i])) * std::sqrt(static_cast<double>(dot[j * T + j]));
      const double tolerance = kGramNoise * scale_ij;
      const double actual = K[i * T + j], wanted = static_cast<double>(dot[i * T + j]);
      expect(spoilt[i] || spoilt[j] ? std::isnan(actual) : std::fabs(actual - wanted) <= tolerance,
             "%s: K[%ld,%ld] = %g, expected %g", data.made.name.c_str(), static_cast<long>(i), static_cast<long>(j), actual,
             wanted);
    }
}

template <class S>
void check_excess(const Data<S>& data, int64_t offset) {
  using A = accumulator_t<S>;
  const int64_t T = data.made.tasks;
  State<S> state(data, offset);
  std::vector<double> e(T, NAN), sums(measures(data.plan, T), NAN);
  excess<S>(data.plan, data.rows, T, kEps, state.now, e.data(), sums.data(), nullptr);
  std::vector<long double> wanted(T, 0);
  for_each_element(data, state, [&](int64_t t, A x, bool there, A& element) {
    if (!there) return;
    const A square = x * x, grown = element + square;
    if (square != 0) wanted[t] += std::isfinite(grown) ? square / std::sqrt(grown + static_cast<A>(kEps)) : NAN;
    if (std::isfinite(grown)) element = grown;
  });
  expect_state(data, state, "excess");
  for (int64_t t = 0; t < T; ++t) {
    const auto sum = static_cast<double>(wanted[t]);
    const double tolerance = (std::is_same_v<A, double> ? 1e-13 : 1e-5) * sum;
    expect(std::isnan(sum) ? std::isnan(e[t]) : std::fabs(e[t] - sum) <= tolerance, "%s: e[%ld] = %g, expected %g",
           data.made.name.c_str(), static_cast<long>(t), e[t], sum);
  }
}

// Every alignment of the rows and of the state.
template <class S>
void check_case(Case c) {
  const Data<S> aligned(c);
  check_track(aligned, 0);
  check_excess(aligned, 1);
  c.offset = 1;
  c.name += ", misaligned";
  const Data<S> misaligned(c);
  check_track(misaligned, 1);
  check_excess(misaligned, 0);
}

template <class S>
void check_all() {
  for (const int64_t T : kQuick ? std::vector<int64_t>{3} : std::vector<int64_t>{1, 2, 3, 8, 9}) {
    const std::string tasks = std::to_string(T) + " tasks";
    check_case<S>({tasks, T, {67, 3, 1100}});
    Case some{tasks + ", absent", T, {5, 1030, 17, 600, 1}};
    some.absent = [](int64_t t, int64_t p) { return (t + p) % 3 == 0 || (p == 2 && t != 0); };
    check_case<S>(some);
  }
  check_case<S>({"zero sizes first, middle and last", 2, {0, 5, 0, 7, 0}});
  check_case<S>({"nothing", 2, {0, 0}});
  if (sizeof(S) == 4) check_long_lists([](const Case& c) { check_case<S>(c); });
  Case bad{"what is not finite", 3, {1100, 40}};
  bad.value = [](int64_t t, int64_t p, double x) { return t == 1 && p == 1 ? (x > 1 ? INFINITY : x < -1 ? NAN : x) : x; };
  check_case<S>(bad);
  if (kQuick) return;
  check_case<S>({"segments of two blocks", 3, {4100, 30, 5000}, 2});
  Case edge{"a table's edge inside a segment of several blocks", 9, std::vector<int64_t>(40, 700), 3};
  check_case<S>(edge);
  edge.name += ", spoilt before it";
  edge.value = [](int64_t t, int64_t p, double x) { return t == 2 && p == 0 ? NAN : x; };
  check_case<S>(edge);
}

}  // namespace

int main() {
  check_all<float>();
  check_all<BFloat16>();
  if constexpr (!kQuick) {
    check_all<double>();
    check_all<Float16>();
  }
  const Data<float> many(kManyTasks);
  State<float> state(many, 0);
  const std::vector<double> scale(100, 1.0);
  std::vector<double> e(100), sums(measures(many.plan, 100)), K(100 * 100), workspace(gram_workspace(many.gram_plan, 100));
  size_t launch = blocks_launched.size();
  excess<float>(many.plan, many.rows, 100, kEps, state.now, e.data(), sums.data(), nullptr);
  expect_blocks("excess", launch, 30);
  launch = blocks_launched.size();
  std::vector<int> marks(measures(many.plan, 100));
  track_gram<float>(many.plan, many.gram_plan, many.rows, 100, scale.data(), &kRate, state.now, K.data(), marks.data(),
                    workspace.data(), -1, nullptr);
  expect_blocks("track_gram", launch, 30);
  expect_blocks("its Gram matrix", launch + 1, 15);
  std::printf("%d checks, %d failed\n", checks, failures);
  return failures ? 1 : 0;
}
