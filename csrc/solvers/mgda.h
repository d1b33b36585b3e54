// MGDA (arXiv 1810.04650): the point of the gradients' convex hull that is nearest to zero, by its weights.
#pragma once

#include "cagrad.h"

namespace mtlkernels {

constexpr int64_t mgda_workspace(int64_t tasks) { return tasks * tasks + tasks + active_set_doubles(tasks); }
constexpr int64_t mgda_ints(int64_t tasks) { return tasks + active_set_ints(tasks); }

// w: (n) the point's weights, its support listed in `memory`. Returns whether the bound on work was kept.
template <class Lanes>
MTLKERNELS_HOST_DEVICE bool nearest_to_zero(const Lanes& lanes, const double* A, int n, double* w, int& count,
                                            const ActiveSetMemory& memory) {
  const SimplexSquare problem{A, nullptr, 0.0, 0.5, n};
  count = start_at_vertex(lanes, problem, w, memory);
  return active_set(lanes, problem, w, count, memory);
}

template <class Lanes>
MTLKERNELS_HOST_DEVICE void mgda(const Lanes& lanes, const double* K, int tasks, double* weights, int64_t* status,
                                 double* workspace, int* ints) {
  int* active = ints;
  const int n = screen(lanes, K, tasks, status, active);
  fill(lanes, weights, tasks, n < 0 ? NAN : 0.0);
  if (n <= 0) return;
  double *A = workspace, *w = A + tasks * tasks;
  const ActiveSetMemory memory(w + tasks, ints + tasks, n);
  normalise(lanes, K, tasks, active, n, A, w);
  int count = 0;
  if (!nearest_to_zero(lanes, A, n, w, count, memory)) flag_all(lanes, status, tasks, kNoConvergence);
  const double square = quadratic(lanes, A, w, n, memory.Kx);
  double terms = 0;
  for (int i = 0; i < n; ++i) terms += w[i] * std::sqrt(A[i * n + i]);
  if (is_stationary(lanes, A, w, n, square))
    flag_all(lanes, status, tasks, kStationary);
  else if (!stands_out(std::sqrt(square), terms))
    flag_all(lanes, status, tasks, kIllConditioned);  // the weights are bounded: no ridge could help
  for (int r = lanes.lane; r < n; r += lanes.lanes) weights[active[r]] = w[r];
  lanes.sync();
}

}  // namespace mtlkernels
