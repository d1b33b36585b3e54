// PCGrad (arXiv 2001.06782) as weights. Row i of C holds task i's projected gradient in terms of the originals,
// v_i = sum_k C_ik g_k, starting from g_i. It visits the other tasks in the given order, and where v_i . g_j < 0 the
// component along g_j goes: C_ij -= (C_i K_:j) / K_jj. The direction sums the v_i, so w = C^T 1. O(T^3), nothing N-long.
#pragma once

#include "../common/draws.h"
#include "../linalg/screen.h"

namespace mtlkernels {

constexpr int64_t pcgrad_workspace(int64_t tasks) { return tasks * tasks; }  // doubles

// order: (T, T - 1), row i the other tasks as task i visits them. mean: divide by the number of tasks that take part.
template <class Lanes>
MTLKERNELS_HOST_DEVICE void pcgrad(const Lanes& lanes, const double* K, const int64_t* order, int tasks, bool mean,
                                   double* weights, int64_t* status, double* C, int* active) {
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

constexpr int64_t pcgrad_order(int64_t tasks) { return tasks * (tasks - 1); }

// The same in the order that (seed, step) draws; counts the step. order: pcgrad_order(tasks) int64 of memory.
template <class Lanes>
MTLKERNELS_HOST_DEVICE void pcgrad_drawn(const Lanes& lanes, const double* K, const int64_t* seed, int64_t* step,
                                         int tasks, bool mean, double* weights, int64_t* status, int64_t* order,
                                         double* C, int* active) {
  visiting_order(lanes, static_cast<uint64_t>(*seed), static_cast<uint64_t>(*step), tasks, order);
  pcgrad(lanes, K, order, tasks, mean, weights, status, C, active);
  if (lanes.lane == 0) ++*step;
}

}  // namespace mtlkernels
