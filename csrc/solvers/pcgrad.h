// PCGrad (arXiv 2001.06782) as weights. Row i of C holds task i's projected gradient in terms of the originals,
// v_i = sum_k C_ik g_k, starting from g_i. It visits the other tasks in the given order, and where v_i . g_j < 0 the
// component along g_j goes: C_ij -= (C_i K_:j) / K_jj. The direction sums the v_i, so w = C^T 1. O(T^3), nothing N-long.
#pragma once

#include "../common/draws.h"
#include "../common/solver.h"
#include "../linalg/screen.h"

namespace mtlkernels {

// order: row i the other tasks as task i visits them. mean: divide by the number of tasks that take part.
template <class Lanes, class Index>
MTLKERNELS_HOST_DEVICE void project_in_order(const Lanes& lanes, const Problem& problem, const Index* order, bool mean) {
  const auto [K, tasks, weights, status, C, active] = problem;
  const int count = screen(lanes, K, tasks, status, active);
  if (count < 0) return fill(lanes, weights, tasks, NAN);
  for (int i = lanes.lane; i < tasks; i += lanes.lanes) {
    double* row = C + i * tasks;
    for (int k = 0; k < tasks; ++k) row[k] = k == i ? 1.0 : 0.0;
    for (int visit = 0; visit + 1 < tasks; ++visit) {
      const int j = static_cast<int>(order[i * (tasks - 1) + visit]);
      double dot = 0;
      for (int k = 0; k < tasks; ++k) dot += row[k] * K[k * tasks + j];
      if (dot < 0 && K[j * tasks + j] > 0) row[j] -= dot / K[j * tasks + j];
    }
  }
  lanes.sync();
  for (int j = lanes.lane; j < tasks; j += lanes.lanes) {
    double sum = 0;
    for (int i = 0; i < tasks; ++i) sum += K[i * tasks + i] > 0 ? C[i * tasks + j] : 0.0;
    weights[j] = K[j * tasks + j] > 0 ? (mean ? sum / count : sum) : 0.0;
  }
  lanes.sync();
}

// An order that names no task: the weights are NaN.
struct PCGrad : Solver {
  static constexpr const char* kName = "pcgrad";
  static constexpr const char* kArguments[] = {"order", "mean"};
  static constexpr int64_t doubles(int64_t tasks) { return tasks * tasks; }

  template <class Lanes>
  MTLKERNELS_HOST_DEVICE static void solve(const Lanes& lanes, const Problem& problem, TaskOrder order, bool mean) {
    if (names_tasks(lanes, order, problem.tasks)) return project_in_order(lanes, problem, order.at, mean);
    screen(lanes, problem.K, problem.tasks, problem.status, problem.ints);
    fill(lanes, problem.weights, problem.tasks, NAN);
  }
};

// In the order that (seed, step) draws; counts the step.
struct PCGradDrawn : PCGrad {
  static constexpr const char* kName = "pcgrad_drawn";
  static constexpr const char* kArguments[] = {"seed", "step", "mean"};
  static constexpr int64_t ints(int64_t tasks) { return tasks * tasks; }

  template <class Lanes>
  MTLKERNELS_HOST_DEVICE static void solve(const Lanes& lanes, const Problem& problem, Word seed, Counter step, bool mean) {
    int* order = problem.ints + problem.tasks;
    visiting_order(lanes, static_cast<uint64_t>(*seed.at), static_cast<uint64_t>(*step.at), problem.tasks, order);
    project_in_order(lanes, problem, order, mean);
    if (lanes.lane == 0) ++*step.at;
  }
};

}  // namespace mtlkernels
