// DualProj and UPGrad (arXiv 2406.16232): projection onto the cone of directions that conflict with no task,
// {d : G d >= 0}, of the mean gradient (DualProj) or of each gradient, then averaged (UPGrad).
//
// The cone does not see the gradients' lengths, so the problem is posed for unit gradients: K becomes the matrix of
// cosines and a weight of g_i is one of its unit vector divided by ||g_i||. UPGrad's T problems share that matrix. Where
// noise of K may move the answer, a ridge bounds it.
#pragma once

#include "../common/solver.h"
#include "../linalg/cosines.h"
#include "../linalg/dual_cone.h"

namespace mtlkernels {

// The projections, of all problems. weights: what they start from, the shares, and what they end at. Returns whether all
// reached their optimum, and sets `moved` to how far noise moves their sum: over the supports where `careful`, else by
// sqrt(8 kNoise) of the terms, as in mgda.h, which costs nothing.
template <class Lanes>
MTLKERNELS_HOST_DEVICE bool project(const Lanes& lanes, const double* C, const double* norm, const double* share,
                                    const int* active, int n, bool each, double* b, double* x, double* weights, bool careful,
                                    double& moved, const ActiveSetMemory& memory) {
  for (int r = lanes.lane; r < n; r += lanes.lanes) weights[active[r]] = share[r];
  lanes.sync();
  bool converged = true;
  moved = 0;
  for (int i = 0; i < (each ? n : 1); ++i) {
    double unit = 0;  // the problem's own length; the answer scales with it
    if (each) {
      unit = norm[i] * share[i];
    } else {
      for (int j = 0; j < n; ++j) unit = std::fmax(unit, norm[j] * share[j]);
      for (int r = lanes.lane; r < n; r += lanes.lanes) {
        double total = 0;
        for (int s = 0; s < n; ++s) total += C[r * n + s] * (norm[s] * share[s] / unit);
        b[r] = total;
      }
    }
    fill(lanes, x, n, 0.0);
    if (!(unit > 0)) continue;
    int count = 0;
    const double* target = each ? C + i * n : b;
    converged = active_set(lanes, DualCone{C, target, n}, x, count, memory) && converged;
    double terms = each ? 1.0 : 0.0;
    for (int r = 0; r < n; ++r) terms += x[r] + (each ? 0.0 : norm[r] * share[r] / unit);
    double most = std::sqrt(8 * kNoise) * terms;
    if (careful) most = count ? std::fmin(most, kNoise * terms * spread(lanes, C, n, count, memory).sum) : 0.0;
    moved += unit * most;
    for (int r = lanes.lane; r < n; r += lanes.lanes) weights[active[r]] += x[r] * (unit / norm[r]);
    lanes.sync();
  }
  return converged;
}

// preference: (T) not negative, or null for the mean over the tasks that take part. each: UPGrad.
template <bool each>
struct ConeProjection : Solver {
  static constexpr const char* kArguments[] = {"preference"};
  static constexpr int64_t doubles(int64_t tasks) { return tasks * tasks + 4 * tasks + active_set_doubles(tasks); }
  static constexpr int64_t ints(int64_t tasks) { return tasks + active_set_ints(tasks); }

  template <class Lanes>
  MTLKERNELS_HOST_DEVICE static void solve(const Lanes& lanes, const Problem& problem, NumbersOrEmpty preference) {
    const auto [K, tasks, weights, status, workspace, ints] = problem;
    int* active = ints;
    const int n = screen(lanes, K, tasks, status, active);
    fill(lanes, weights, tasks, n < 0 ? NAN : 0.0);
    if (n <= 0) return;
    double* C = workspace;
    double *norm = C + tasks * tasks, *share = norm + tasks, *b = share + tasks, *x = b + tasks;
    const ActiveSetMemory memory(x + tasks, ints + tasks, n);
    cosines(lanes, K, tasks, active, n, C, norm);
    for (int r = lanes.lane; r < n; r += lanes.lanes) share[r] = preference ? preference[active[r]] : 1.0 / n;
    lanes.sync();

    double moved = 0;
    bool converged = project(lanes, C, norm, share, active, n, each, b, x, weights, false, moved, memory);
    for (int r = lanes.lane; r < n; r += lanes.lanes) x[r] = weights[active[r]] * norm[r];
    lanes.sync();
    double square = 0;
    multiply(lanes, C, x, n, memory.Kx);
    for (int r = 0; r < n; ++r) square += x[r] * memory.Kx[r];
    lanes.sync();
    const double tolerance = kTolerance * std::sqrt(std::fmax(square, 0.0));
    if (moved > tolerance) project(lanes, C, norm, share, active, n, each, b, x, weights, true, moved, memory);
    if (moved > tolerance) {
      add_ridge(lanes, C, n);
      converged = project(lanes, C, norm, share, active, n, each, b, x, weights, false, moved, memory);
      flag_all(lanes, status, tasks, kIllConditioned);
    }
    if (!converged) flag_all(lanes, status, tasks, kNoConvergence);
  }
};

struct DualProj : ConeProjection<false> {
  static constexpr const char* kName = "dualproj";
};

struct UPGrad : ConeProjection<true> {
  static constexpr const char* kName = "upgrad";
};

}  // namespace mtlkernels
