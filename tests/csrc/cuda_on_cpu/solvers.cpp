// The solvers on a warp of threads against the same solvers on the host, bit for bit, and with a sanitizer watching.
#include <cstring>
#include <functional>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "../../csrc/cuda/lanes.cuh"
#include "../../csrc/solvers/aligned.h"
#include "../../csrc/solvers/avgnorm.h"
#include "../../csrc/solvers/cone_projection.h"
#include "../../csrc/common/draws.h"
#include "../../csrc/solvers/equiangular.h"
#include "../../csrc/solvers/fair.h"
#include "../../csrc/solvers/gradnorm.h"
#include "../../csrc/solvers/gradvac.h"
#include "../../csrc/solvers/imgrad.h"
#include "../../csrc/solvers/pcgrad.h"
#include "../../csrc/solvers/simplex_descent.h"

using namespace mtlkernels;
using cuda::Warp;

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
  if (kind == "not finite") K[0] = NAN;
  if (kind == "not symmetric") K[tasks - 1] += K[0];
  if (kind == "negative") K[tasks * tasks - 1] = -1;
  return K;
}

// One solver's outputs and memory, poisoned.
struct Call {
  std::vector<double> weights, workspace, more, most;
  std::vector<int64_t> status, order, count;
  std::vector<int> ints;

  Call(int tasks, int64_t doubles, int64_t int_count)
      : weights(tasks, NAN), workspace(doubles, NAN), more(tasks * tasks, NAN), most(tasks, NAN), status(tasks, -1),
        order(tasks * (tasks - 1), -1), count(1, 11), ints(int_count, -1) {}
};

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

// solve(lanes, call)
template <class Solve>
void compare(const std::string& name, int tasks, int64_t doubles, int64_t ints, const Solve& solve) {
  Call host(tasks, doubles, ints), device(tasks, doubles, ints);
  solve(HostLane{}, host);
  cuda::launch_solver(nullptr, [&](const Warp& lanes) { solve(lanes, device); });
  ++checks;
  if (same_bits(host.weights, device.weights) && same_bits(host.status, device.status) &&
      same_bits(host.more, device.more) && same_bits(host.most, device.most) && same_bits(host.order, device.order) && same_bits(host.count, device.count))
    return;
  ++failures;
  std::fprintf(stderr, "%s of %d tasks differs between host and device\n", name.c_str(), tasks);
}

void compare_all(const std::string& kind, int tasks) {
  const std::vector<double> gram = hard_gram(kind, tasks), numbers = random_numbers(tasks, 9);
  const double* K = gram.data();
  std::vector<double> positive, targets(tasks * tasks, 0.25);
  for (double x : numbers) positive.push_back(std::exp(x));
  const double* p = positive.data();
  std::vector<int64_t> order(tasks * (tasks - 1));
  visiting_order(HostLane{}, 3, 11, tasks, order.data());
  const auto run = [&](const char* name, int64_t doubles, int64_t ints, const auto& solve) {
    compare(kind + ": " + name, tasks, doubles, ints, solve);
  };
  run("screen", 0, tasks, [&](const auto& l, Call& c) { screen(l, K, tasks, c.status.data(), c.ints.data()); });
  run("visiting_order", 0, 0, [&](const auto& l, Call& c) { visiting_order(l, 3, 11, tasks, c.order.data()); });
  run("normal_numbers", 0, 0, [&](const auto& l, Call& c) { normal_numbers(l, 3, 11, tasks, c.weights.data()); });
  run("pcgrad", pcgrad_workspace(tasks), tasks, [&](const auto& l, Call& c) {
    pcgrad(l, K, order.data(), tasks, false, c.weights.data(), c.status.data(), c.workspace.data(), c.ints.data());
  });
  run("pcgrad_drawn", pcgrad_workspace(tasks), tasks, [&](const auto& l, Call& c) {
    const int64_t seed = 3;
    pcgrad_drawn(l, K, &seed, c.count.data(), tasks, true, c.weights.data(), c.status.data(), c.order.data(),
                 c.workspace.data(), c.ints.data());
  });
  run("avgnorm", avgnorm_workspace(tasks), tasks, [&](const auto& l, Call& c) {
    avgnorm(l, K, tasks, NormScale::kMedian, 1.0, c.weights.data(), c.status.data(), c.workspace.data(), c.ints.data());
  });
  run("cagrad", cagrad_workspace(tasks), cagrad_ints(tasks), [&](const auto& l, Call& c) {
    cagrad(l, K, tasks, 0.5, Rescale::kSquare, false, c.weights.data(), c.status.data(), c.workspace.data(), c.ints.data());
  });
  run("mgda", mgda_workspace(tasks), mgda_ints(tasks), [&](const auto& l, Call& c) {
    mgda(l, K, tasks, c.weights.data(), c.status.data(), c.workspace.data(), c.ints.data());
  });
  for (const IMGradForm form : {IMGradForm::kPaper, IMGradForm::kCode})
    run("imgrad", cagrad_workspace(tasks), cagrad_ints(tasks), [&](const auto& l, Call& c) {
      imgrad(l, K, tasks, 0.5, form, Rescale::kNone, c.weights.data(), c.status.data(), c.workspace.data(), c.ints.data());
    });
  for (const bool each : {false, true})
    run("cone_projection", cone_projection_workspace(tasks), cone_projection_ints(tasks), [&](const auto& l, Call& c) {
      cone_projection(l, K, tasks, each ? p : nullptr, each, c.weights.data(), c.status.data(), c.workspace.data(),
                      c.ints.data());
    });
  run("gradvac", gradvac_workspace(tasks), tasks, [&](const auto& l, Call& c) {
    gradvac(l, K, order.data(), targets.data(), tasks, 0.01, false, c.weights.data(), c.status.data(), c.more.data(),
            c.workspace.data(), c.ints.data());
  });
  run("gradnorm", tasks, tasks, [&](const auto& l, Call& c) {
    gradnorm(l, K, p, p, targets.data(), tasks, 1.5, 0.02, c.weights.data(), c.status.data(), c.more.data(),
             c.most.data(), c.workspace.data(), c.ints.data());
  });
  for (const bool relative : {false, true})
    run("simplex_descent", simplex_descent_workspace(tasks), tasks, [&](const auto& l, Call& c) {
      simplex_descent(l, K, p, tasks, 5, relative ? 10 : 0.01, 0.5, 0.3, 0.1, relative, c.weights.data(), c.status.data(),
                      c.most.data(), c.workspace.data(), c.ints.data());
    });
  for (const double alpha : {1.0, 2.0})
    run("fair", fair_workspace(tasks), fair_ints(tasks), [&](const auto& l, Call& c) {
      fair(l, K, alpha == 1 ? nullptr : p, tasks, alpha, 1.0, c.weights.data(), c.status.data(), c.workspace.data(),
           c.ints.data());
    });
  for (const EquiangularLength length : {EquiangularLength::kProjections, EquiangularLength::kUnitSum})
    run("equiangular", equiangular_workspace(tasks), tasks, [&](const auto& l, Call& c) {
      equiangular(l, K, tasks, length, c.weights.data(), c.status.data(), c.workspace.data(), c.ints.data());
    });
  run("aligned", aligned_workspace(tasks), tasks, [&](const auto& l, Call& c) {
    aligned(l, K, p, tasks, AlignedScale::kMedian, true, c.weights.data(), c.status.data(), c.workspace.data(), c.ints.data());
  });
}

// An order whose last entry names no task is noticed by every lane.
void check_orders(int tasks) {
  std::vector<int64_t> order(tasks * (tasks - 1), 0);
  for (const int64_t last : {int64_t{0}, int64_t{tasks}, int64_t{-1}, std::numeric_limits<int64_t>::max()}) {
    order.back() = last;
    int found[cuda::kWarp];
    cuda::launch_solver(nullptr, [&](const Warp& lanes) {
      found[lanes.lane] = cuda::names_tasks(lanes, order.data(), tasks) ? 1 : 0;
    });
    for (int lane : found) {
      ++checks;
      if (lane == (last == 0 ? 1 : 0)) continue;
      ++failures;
      std::fprintf(stderr, "an order that ends in %ld: lane says %d\n", static_cast<long>(last), lane);
    }
  }
}

}  // namespace

int main() {
#if defined(__SANITIZE_THREAD__)
  const std::vector<int> sizes = {2, 3, 6, 9};
#else
  const std::vector<int> sizes = {1, 2, 3, 4, 7, 9, 17};
#endif
  for (const char* kind : {"random", "low rank", "nearly parallel", "conflicting", "badly scaled", "a zero row", "not finite",
                           "not symmetric", "negative"})
    for (const int tasks : sizes) compare_all(kind, tasks);
  compare_all("random", 40);
  check_orders(5);
  std::printf("%d checks, %d failed\n", checks, failures);
  return failures ? 1 : 0;
}
