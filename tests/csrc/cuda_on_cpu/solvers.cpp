// The solvers on a warp of threads against the same solvers on the host, bit for bit, and with a sanitizer watching.
#include <algorithm>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <tuple>
#include <vector>

#include "../../../csrc/common/draws.h"
#include "../../../csrc/cuda/lanes.cuh"
#include "../../../csrc/solvers/aligned.h"
#include "../../../csrc/solvers/avgnorm.h"
#include "../../../csrc/solvers/cone_projection.h"
#include "../../../csrc/solvers/equiangular.h"
#include "../../../csrc/solvers/fair.h"
#include "../../../csrc/solvers/gradnorm.h"
#include "../../../csrc/solvers/gradvac.h"
#include "../../../csrc/solvers/imgrad.h"
#include "../../../csrc/solvers/pcgrad.h"
#include "../../../csrc/solvers/simplex_descent.h"

using namespace mtlkernels;

namespace {

int failures = 0;
int checks = 0;

std::vector<double> random_numbers(size_t n, unsigned seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<double> normal;
  std::vector<double> x(n);
  for (double& value : x) value = normal(generator);
  return x;
}

// K of T rows of n elements that the solvers find hard, by kind.
std::vector<double> hard_gram(const std::string& kind, int tasks) {
  const int n = kind == "low rank" ? std::max(2, tasks / 3) : 30;
  std::vector<double> G = random_numbers(static_cast<size_t>(tasks) * n, 5);
  std::vector<double> mean(n, 0);
  for (int i = 0; i < tasks * n; ++i) mean[i % n] += G[i] / tasks;
  for (int i = 0; i < tasks * n; ++i) {
    if (kind == "conflicting" || kind == "badly scaled") G[i] -= 0.98 * mean[i % n];
    if (kind == "nearly parallel") G[i] = mean[i % n] + 1e-4 * G[i];
    if (kind == "badly scaled") G[i] *= std::pow(10.0, 8.0 * (i / n) / tasks - 4);
    if (kind == "a zero row" && i / n == tasks / 2) G[i] = 0;
  }
  std::vector<double> K(tasks * tasks, 0);
  for (int i = 0; i < tasks; ++i)
    for (int j = 0; j < tasks; ++j)
      for (int k = 0; k < n; ++k) K[i * tasks + j] += G[i * n + k] * G[j * n + k];
  if (kind == "not finite" || kind == "not finite and negative") K[0] = NAN;
  if (kind == "not symmetric") K[tasks - 1] += K[0];
  if (kind == "negative" || (kind == "not finite and negative" && tasks > 1)) K[tasks * tasks - 1] = -1;
  return K;
}

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

// One solver's outputs and memory, poisoned.
struct Memory {
  std::vector<double> weights, workspace, more, most;
  std::vector<int64_t> status, order, count;
  std::vector<int> ints;

  Memory(int tasks, int64_t doubles, int64_t int_count)
      : weights(tasks, 7e77), workspace(doubles, NAN), more(tasks * tasks, NAN), most(tasks, NAN), status(tasks, -1),
        order(tasks * (tasks - 1), -1), count(1, 11), ints(int_count, -1) {}
  bool same_answer(const Memory& other) const {
    return same_bits(weights, other.weights) && same_bits(status, other.status) && same_bits(more, other.more) &&
           same_bits(most, other.most) && same_bits(order, other.order) && same_bits(count, other.count);
  }
};

void expect_same(const std::string& name, int tasks, const Memory& host, const Memory& device) {
  ++checks;
  if (host.same_answer(device)) return;
  ++failures;
  std::fprintf(stderr, "%s of %d tasks differs between host and device\n", name.c_str(), tasks);
}

// What a solver says of a K from which no weights can come, where it cannot raise: NaN, and whose fault it is.
void expect_refusal(const std::string& kind, const std::string& name, int tasks, const Memory& answer) {
  std::vector<int64_t> flags(tasks, 0);
  if (kind == "not symmetric" && tasks > 1) flags.front() = flags.back() = kInvalidGram;
  if (kind == "negative" || kind == "not finite and negative") flags.back() = kInvalidGram;
  if (kind == "not finite" || kind == "not finite and negative") flags.front() = kNonFinite;
  if (std::all_of(flags.begin(), flags.end(), [](int64_t flag) { return flag == 0; })) return;
  ++checks;
  const bool nothing = std::all_of(answer.weights.begin(), answer.weights.end(), [](double w) { return std::isnan(w); });
  if (nothing && answer.status == flags) return;
  ++failures;
  std::fprintf(stderr, "%s: %s of %d tasks does not refuse\n", kind.c_str(), name.c_str(), tasks);
}

// S::solve on both. arguments(memory): what comes after the problem.
template <class S, class Arguments>
void compare(const std::string& kind, const std::string& name, const double* K, int tasks, const Arguments& arguments) {
  const auto solved = [&](const auto& solve) {
    Memory memory(tasks, S::doubles(tasks), S::ints(tasks));
    const Problem problem{
        K, tasks, memory.weights.data(), memory.status.data(), memory.workspace.data(), memory.ints.data()};
    std::apply([&](const auto&... given) { solve(problem, given...); }, arguments(memory));
    return memory;
  };
  const Memory host = solved([](const auto&... all) { S::solve(HostLane{}, all...); });
  expect_same(kind + ": " + name, tasks, host, solved([](const auto&... all) { cuda::launch_solver<S>(nullptr, all...); }));
  if (S::kOneBatch && !std::is_same_v<S, TaskStatus>) expect_refusal(kind, name, tasks, host);
}

void compare_all(const std::string& kind, int tasks) {
  const std::vector<double> gram = hard_gram(kind, tasks), numbers = random_numbers(tasks, 9);
  std::vector<double> positive, targets(tasks * tasks, 0.25);
  for (double x : numbers) positive.push_back(std::exp(x));
  const int64_t seed = 3, step = 11;
  std::vector<int64_t> order(tasks * (tasks - 1));
  VisitingOrder::solve(HostLane{}, &seed, &step, tasks, order.data());
  Memory host(tasks, 0, 0), device(tasks, 0, 0);
  host.order = order;
  cuda::launch_solver<VisitingOrder>(nullptr, &seed, &step, tasks, device.order.data());
  NormalNumbers::solve(HostLane{}, &seed, &step, int64_t{tasks}, host.weights.data());
  cuda::launch_solver<NormalNumbers>(nullptr, &seed, &step, int64_t{tasks}, device.weights.data());
  expect_same(kind + ": draws", tasks, host, device);

  const TaskNumbers p{positive.data()}, start{targets.data()};
  const TaskOrder visits{order.data()};
  const auto run = [&]<class S>(S, const char* name, const auto&... given) {
    compare<S>(kind, name, gram.data(), tasks, [&](Memory&) { return std::tuple(given...); });
  };
  run(TaskStatus{}, "screen");
  run(PCGrad{}, "pcgrad", visits, false);
  compare<PCGradDrawn>(kind, "pcgrad_drawn", gram.data(), tasks,
                       [&](Memory& m) { return std::tuple(Word{&seed}, Counter{m.count.data()}, true); });
  run(AvgNorm{}, "avgnorm", NormScale::kMedian, 1.0);
  run(CAGrad{}, "cagrad", 0.5, Rescale::kSquare, false);
  run(MGDA{}, "mgda");
  for (const IMGradForm form : {IMGradForm::kPaper, IMGradForm::kCode}) run(IMGrad{}, "imgrad", 0.5, form, Rescale::kNone);
  run(DualProj{}, "dualproj", NumbersOrEmpty{nullptr});
  run(UPGrad{}, "upgrad", NumbersOrEmpty{p.at});
  compare<GradVac>(kind, "gradvac", gram.data(), tasks, [&](Memory& m) {
    return std::tuple(visits, PairNumbers{targets.data()}, 0.01, false, NextPairNumbers{m.more.data()});
  });
  compare<GradNorm>(kind, "gradnorm", gram.data(), tasks, [&](Memory& m) {
    return std::tuple(p, p, start, 1.5, 0.02, NextTaskNumbers{m.more.data()}, NextTaskNumbers{m.most.data()});
  });
  for (const bool relative : {false, true})
    compare<SimplexDescent>(kind, "simplex_descent", gram.data(), tasks, [&](Memory& m) {
      return std::tuple(p, int64_t{5}, relative ? 10 : 0.01, 0.5, 0.3, 0.1, relative, NextTaskNumbers{m.most.data()});
    });
  for (const double alpha : {1.0, 2.0}) run(Fair{}, "fair", alpha, OptionalNumbers{alpha == 1 ? nullptr : p.at}, 1.0);
  for (const EquiangularLength length : {EquiangularLength::kProjections, EquiangularLength::kUnitSum})
    run(Equiangular{}, "equiangular", length);
  run(Aligned{}, "aligned", OptionalNumbers{p.at}, AlignedScale::kMedian, true);
}

struct NamesTasks {
  template <class Lanes>
  static void solve(const Lanes& lanes, const int64_t* order, int tasks, int* found) {
    found[lanes.lane] = names_tasks(lanes, order, tasks) ? 1 : 0;
  }
};

// An order whose last entry names no task is noticed by every lane, and makes the weights NaN.
void check_orders(int tasks) {
  const std::vector<double> gram = hard_gram("random", tasks);
  std::vector<int64_t> order(tasks * (tasks - 1), 0);
  for (const int64_t last : {int64_t{0}, int64_t{tasks}, int64_t{-1}, std::numeric_limits<int64_t>::max()}) {
    order.back() = last;
    int found[cuda::kWarp];
    cuda::launch_solver<NamesTasks>(nullptr, static_cast<const int64_t*>(order.data()), tasks, static_cast<int*>(found));
    for (int lane : found) {
      ++checks;
      if (lane == (last == 0 ? 1 : 0)) continue;
      ++failures;
      std::fprintf(stderr, "an order that ends in %ld: lane says %d\n", static_cast<long>(last), lane);
    }
    Memory memory(tasks, PCGrad::doubles(tasks), PCGrad::ints(tasks));
    const Problem problem{gram.data(),       tasks, memory.weights.data(), memory.status.data(), memory.workspace.data(),
                          memory.ints.data()};
    cuda::launch_solver<PCGrad>(nullptr, problem, TaskOrder{order.data()}, false);
    ++checks;
    if (std::isnan(memory.weights[0]) == (last != 0) && memory.status[0] == 0) continue;
    ++failures;
    std::fprintf(stderr, "an order that ends in %ld: the weights are %f\n", static_cast<long>(last), memory.weights[0]);
  }
}

}  // namespace

int main() {
#if defined(__SANITIZE_THREAD__)
  const std::vector<int> sizes = {2, 3, 6, 9};
#else
  const std::vector<int> sizes = {1, 2, 3, 4, 7, 9, 17};
#endif
  for (const char* kind : {"random", "low rank", "nearly parallel", "conflicting", "badly scaled", "a zero row",
                           "not finite", "not symmetric", "negative", "not finite and negative"})
    for (const int tasks : sizes) compare_all(kind, tasks);
  compare_all("random", 40);
  check_orders(5);
  std::printf("%d checks, %d failed\n", checks, failures);
  return failures ? 1 : 0;
}
