// MGDA (arXiv 1810.04650): the point of the gradients' convex hull that is nearest to zero, by its weights.
#pragma once

#include "../common/solver.h"
#include "cagrad.h"

namespace mtlkernels {

// w: (n) the point's weights, its support listed in `memory`. Returns whether the bound on work was kept.
template <class Lanes>
MTLKERNELS_HOST_DEVICE bool nearest_to_zero(const Lanes& lanes, const double* A, int n, double* w, int& count,
                                            const ActiveSetMemory& memory) {
  const SimplexSquare problem{A, nullptr, 0.0, 0.5, n};
  count = start_at_vertex(lanes, problem, w, memory);
  return active_set(lanes, problem, w, count, memory);
}

// How far noise of K moves the point, as a share of its length: over its support, where the weights' sum stays, and at most
// by sqrt(2 kNoise) of the terms, as the square is strongly convex (twice that is taken: the true point's terms are not
// known).
template <class Lanes>
MTLKERNELS_HOST_DEVICE double moved_nearest(const Lanes& lanes, const double* A, const double* w, double length, int n,
                                            int count, const ActiveSetMemory& memory) {
  const double terms = lengths(A, w, n) / length, most = std::sqrt(8 * kNoise) * terms;
  if (most <= kTolerance) return most;
  return std::fmin(most, kNoise * terms * spread(lanes, A, n, count, memory).tangent);
}

struct MGDA : Solver {
  static constexpr const char* kName = "mgda";
  static constexpr int64_t doubles(int64_t tasks) { return tasks * tasks + tasks + active_set_doubles(tasks); }
  static constexpr int64_t ints(int64_t tasks) { return tasks + active_set_ints(tasks); }

  template <class Lanes>
  MTLKERNELS_HOST_DEVICE static void solve(const Lanes& lanes, const Problem& problem) {
    const auto [K, tasks, weights, status, workspace, ints] = problem;
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
    if (is_stationary(lanes, A, w, n, square))
      flag_all(lanes, status, tasks, kStationary);
    else if (!(moved_nearest(lanes, A, w, std::sqrt(square), n, count, memory) <= kTolerance))
      flag_all(lanes, status, tasks, kIllConditioned);  // the weights are bounded: no ridge could help
    for (int r = lanes.lane; r < n; r += lanes.lanes) weights[active[r]] = w[r];
    lanes.sync();
  }
};

}  // namespace mtlkernels
