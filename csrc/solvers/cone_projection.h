// DualProj and UPGrad (arXiv 2406.16232): projection onto the cone of directions that conflict with no task,
// {d : G d >= 0}, of the mean gradient (DualProj) or of each gradient, then averaged (UPGrad).
//
// The cone does not see the gradients' lengths, so the problem is posed for unit gradients: K becomes the matrix of
// cosines and a weight of g_i is one of its unit vector divided by ||g_i||. UPGrad's T problems share that matrix.
#pragma once

#include "dual_cone.h"
#include "screen.h"

namespace mtlkernels {

constexpr int64_t cone_projection_workspace(int64_t tasks) {
  return tasks * tasks + 4 * tasks + active_set_doubles(tasks);
}
constexpr int64_t cone_projection_ints(int64_t tasks) { return tasks + active_set_ints(tasks); }

// C: (n, n) cosines, norm: (n), share: (n) each task's part in the mean.
template <class Lanes>
MTLKERNELS_HOST_DEVICE void unit_problem(const Lanes& lanes, const double* K, int tasks, const double* preference,
                                         const int* active, int n, double* C, double* norm, double* share) {
  for (int r = lanes.lane; r < n; r += lanes.lanes) {
    norm[r] = std::sqrt(K[active[r] * tasks + active[r]]);
    share[r] = preference ? preference[active[r]] : 1.0 / n;
  }
  lanes.sync();
  for (int r = lanes.lane; r < n; r += lanes.lanes)
    for (int s = 0; s < n; ++s) C[r * n + s] = r == s ? 1.0 : K[active[r] * tasks + active[s]] / norm[r] / norm[s];
  lanes.sync();
}

// preference: (T) not negative, or null for the mean over the tasks that take part. each: UPGrad.
template <class Lanes>
MTLKERNELS_HOST_DEVICE void cone_projection(const Lanes& lanes, const double* K, int tasks, const double* preference,
                                            bool each, double* weights, int64_t* status, double* workspace, int* ints) {
  int* active = ints;
  const int n = screen(lanes, K, tasks, status, active);
  fill(lanes, weights, tasks, n < 0 ? NAN : 0.0);
  if (n <= 0) return;
  double* C = workspace;
  double *norm = C + tasks * tasks, *share = norm + tasks, *b = share + tasks, *x = b + tasks;
  const ActiveSetMemory memory(x + tasks, ints + tasks, n);
  unit_problem(lanes, K, tasks, preference, active, n, C, norm, share);
  for (int r = lanes.lane; r < n; r += lanes.lanes) weights[active[r]] = share[r];
  lanes.sync();

  bool converged = true;
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
    for (int r = lanes.lane; r < n; r += lanes.lanes) weights[active[r]] += x[r] * (unit / norm[r]);
    lanes.sync();
  }
  if (!converged) flag_all(lanes, status, tasks, kNoConvergence);
}

}  // namespace mtlkernels
