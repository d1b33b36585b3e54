// CAGrad (arXiv 2110.14048): d maximises min_i g_i . d over the ball of radius c ||g0|| about the mean gradient g0.
//
// Its dual is a problem on the simplex (simplex.h) with b = K 1 / T and k = c ||g0||; then
//     d = g0 + k g_w / ||g_w||,   weights = 1 / T + k w / ||g_w||.
// Where zero lies in the convex hull of the gradients and no better point exists, ||g_w|| = 0 and the maximum is 0: the
// answer is then the direction nearest to g0 that conflicts with no task (dual_cone.h), which the ball contains.
#pragma once

#include "dual_cone.h"
#include "screen.h"
#include "simplex.h"

namespace mtlkernels {

enum class Rescale : int64_t { kNone = 0, kSquare = 1, kLinear = 2 };  // d, d / (1 + c^2), d / (1 + c)

constexpr int64_t cagrad_workspace(int64_t tasks) { return tasks * tasks + 3 * tasks + active_set_doubles(tasks); }
constexpr int64_t cagrad_ints(int64_t tasks) { return tasks + active_set_ints(tasks); }

// ||g_w||^2 below this share of sum_i w_i K_ii is rounding, and says nothing of the direction of g_w.
constexpr double kStationaryShare = 1e-14;

// The relative rounding of a K whose products are float32, with a margin.
constexpr double kNoise = 1e-6;

template <class Lanes>
MTLKERNELS_HOST_DEVICE double quadratic(const Lanes& lanes, const double* K, const double* x, int n, double* Kx) {
  multiply(lanes, K, x, n, Kx);
  double square = 0;
  for (int i = 0; i < n; ++i) square += x[i] * Kx[i];
  lanes.sync();
  return square > 0 ? square : 0.0;
}

// The best single task to start from.
template <class Lanes>
MTLKERNELS_HOST_DEVICE int start_at_vertex(const Lanes& lanes, const SimplexRoot& problem, double* w,
                                           const ActiveSetMemory& memory) {
  int best = 0;
  double lowest = INFINITY;
  for (int i = 0; i < problem.n; ++i) {
    const double value = problem.b[i] + problem.k * std::sqrt(problem.K[i * problem.n + i]);
    if (value < lowest) lowest = value, best = i;
  }
  fill(lanes, w, problem.n, 0.0);
  if (lanes.lane == 0) w[best] = 1.0, memory.support[0] = best;
  lanes.sync();
  return 1;
}

struct Answer {  // weights = 1 / T + share * v
  double share = 0;
  const double* v = nullptr;
  int64_t flags = 0;
};

template <class Lanes>
MTLKERNELS_HOST_DEVICE Answer solve_cagrad(const Lanes& lanes, const double* A, const double* b, double k, int n, double* w,
                                           double* v, const ActiveSetMemory& memory) {
  const SimplexRoot dual{A, b, k, n};
  int count = start_at_vertex(lanes, dual, w, memory);
  bool converged = active_set(lanes, dual, w, count, memory);
  double length = std::sqrt(quadratic(lanes, A, w, n, memory.Kx));
  double size = 0;
  for (int i = 0; i < n; ++i) size += w[i] * A[i * n + i];
  if (length * length <= kStationaryShare * size) {
    fill(lanes, v, n, 0.0);
    count = 0;
    converged = active_set(lanes, DualCone{A, b, n}, v, count, memory) && converged;
    length = std::sqrt(quadratic(lanes, A, v, n, memory.Kx));
    if (length <= k * (1 + 1e-9)) return {1.0, v, kStationary | (converged ? 0 : kNoConvergence)};
    // The hull reaches past zero: go on from the point that shows it.
    double total = 0;
    for (int i = 0; i < n; ++i) total += v[i];
    for (int i = lanes.lane; i < n; i += lanes.lanes) w[i] = v[i] / total;
    lanes.sync();
    converged = active_set(lanes, dual, w, count, memory) && converged;
    length = std::sqrt(quadratic(lanes, A, w, n, memory.Kx));
  }
  return {k / length, w, converged ? 0 : kNoConvergence};
}

template <class Lanes>
MTLKERNELS_HOST_DEVICE void cagrad(const Lanes& lanes, const double* K, int tasks, double c, Rescale rescale, bool sum,
                                   double* weights, int64_t* status, double* workspace, int* ints) {
  int* active = ints;
  const int n = screen(lanes, K, tasks, status, active);
  fill(lanes, weights, tasks, n < 0 ? NAN : 0.0);
  if (n <= 0) return;

  // The tasks that take part, scaled so that the largest squared norm is 1. Weights do not change with the scale.
  double* A = workspace;
  double *b = A + tasks * tasks, *w = b + tasks, *v = w + tasks;
  const ActiveSetMemory memory(v + tasks, ints + tasks, n);
  double largest = 0;
  for (int a = 0; a < n; ++a) largest = std::fmax(largest, K[active[a] * tasks + active[a]]);
  for (int r = lanes.lane; r < n; r += lanes.lanes) {
    double total = 0;
    for (int s = 0; s < n; ++s) total += A[r * n + s] = K[active[r] * tasks + active[s]] / largest;
    b[r] = total / n;
  }
  lanes.sync();
  double square = 0;
  for (int r = 0; r < n; ++r) square += b[r] / n;
  const double k = c * std::sqrt(square > 0 ? square : 0.0);

  Answer answer;
  if (k > 0) {
    answer = solve_cagrad(lanes, A, b, k, n, w, v, memory);
    // A K from float32 gradients is known to 1e-7 or so of ||g_i|| ||g_j||. Where long terms cancel to a short
    // correction, that noise is all there is to solve for: a ridge above it keeps the correction inside the ball.
    double terms = 0;
    for (int i = 0; i < n; ++i) terms += answer.share * answer.v[i] * std::sqrt(A[i * n + i]);
    if (!(kNoise * terms * terms <= 0.25 * k * k)) {  // also where it is NaN
      lanes.sync();
      for (int i = lanes.lane; i < n; i += lanes.lanes) A[i * n + i] *= 1 + kNoise;
      lanes.sync();
      answer = solve_cagrad(lanes, A, b, k, n, w, v, memory);
      answer.flags |= kIllConditioned;
    }
  }
  if (answer.flags) flag_all(lanes, status, tasks, answer.flags);
  const double divisor = rescale == Rescale::kSquare ? 1 + c * c : rescale == Rescale::kLinear ? 1 + c : 1.0;
  const double factor = (sum ? n : 1) / divisor;
  for (int r = lanes.lane; r < n; r += lanes.lanes)
    weights[active[r]] = factor * (1.0 / n + (answer.share > 0 ? answer.share * answer.v[r] : 0.0));
  lanes.sync();
}

}  // namespace mtlkernels
