// CAGrad (arXiv 2110.14048): d maximises min_i g_i . d over the ball of radius c ||g0|| about the mean gradient g0.
//
// Its dual is a problem on the simplex (simplex.h) with b = K 1 / T and k = c ||g0||; then
//     d = g0 + k g_w / ||g_w||,   weights = 1 / T + k w / ||g_w||.
// Where zero lies in the convex hull of the gradients and no better point exists, ||g_w|| = 0 and the maximum is 0: the
// answer is then the direction nearest to g0 that conflicts with no task (dual_cone.h), which the ball contains.
#pragma once

#include "../common/solver.h"
#include "../linalg/cosines.h"
#include "../linalg/dual_cone.h"
#include "../linalg/simplex.h"

namespace mtlkernels {

enum class Rescale : int64_t { kNone = 0, kSquare = 1, kLinear = 2, kLast = kLinear };  // d, d / (1 + c^2), d / (1 + c)

// ||g_w||^2 below this share of sum_i w_i K_ii is rounding, and says nothing of the direction of g_w.
constexpr double kStationaryShare = 4 * kNoise;

template <class Lanes>
MTLKERNELS_HOST_DEVICE double quadratic(const Lanes& lanes, const double* K, const double* x, int n, double* Kx) {
  multiply(lanes, K, x, n, Kx);
  double square = 0;
  for (int i = 0; i < n; ++i) square += x[i] * Kx[i];
  lanes.sync();
  return square > 0 ? square : 0.0;
}

template <class Lanes>
MTLKERNELS_HOST_DEVICE bool is_stationary(const Lanes& lanes, const double* A, const double* w, int n, double square) {
  double size = 0;
  for (int i = 0; i < n; ++i) size += w[i] * A[i * n + i];
  lanes.sync();  // w may be written next
  return square <= kStationaryShare * size;
}

// A: the tasks that take part, scaled so that the largest squared norm is 1. b = A 1 / n. Returns the scale.
template <class Lanes>
MTLKERNELS_HOST_DEVICE double normalise(const Lanes& lanes, const double* K, int tasks, const int* active, int n, double* A,
                                        double* b) {
  double largest = 0;
  for (int a = 0; a < n; ++a) largest = std::fmax(largest, K[active[a] * tasks + active[a]]);
  for (int r = lanes.lane; r < n; r += lanes.lanes) {
    double total = 0;
    for (int s = 0; s < n; ++s) total += A[r * n + s] = K[active[r] * tasks + active[s]] / largest;
    b[r] = total / n;
  }
  lanes.sync();
  return largest;
}

// What is added to the mean's weights: share * along.
struct Pull {
  double share;
  const double* along;  // (n)
  bool stationary, converged;
  double moved = 0;  // how far noise of K moves the direction share * sum_i along_i g_i, as a share of its length
};

// sum_i x_i sqrt(A_ii)
MTLKERNELS_HOST_DEVICE inline double lengths(const double* A, const double* x, int n) {
  double sum = 0;
  for (int i = 0; i < n; ++i) sum += x[i] * std::sqrt(A[i * n + i]);
  return sum;
}

// Of e = g_w / ||g_w|| from the conditions <g_i, g0> + k <g_i, e> = const over the support, ||e|| = 1. mean: the mean of
// the norms. Noise changes <g_i, g0> by kNoise n_i mean and <g_i, e> by kNoise n_i t, t = sum_i w_i n_i / ||g_w||; the
// constant moves as the length of e has to stay.
template <class Lanes>
MTLKERNELS_HOST_DEVICE double moved_root(const Lanes& lanes, const SimplexRoot& dual, const double* w, double length,
                                         double mean, int count, const ActiveSetMemory& memory) {
  const Spread over = spread(lanes, dual.K, dual.n, count, memory);
  const double terms = lengths(dual.K, w, dual.n) / length, sides = mean / dual.k + terms;
  double bend = 0;  // sum_i |w_i - y_i / s| n_i / ||g_w||: how far w is from the point of its span nearest to zero
  for (int r = 0; r < count && count > 1; ++r) {
    const int i = memory.support[r];
    bend += std::fabs(w[i] - memory.y[r] / (over.root * over.root)) * std::sqrt(dual.K[i * dual.n + i]) / length;
  }
  lanes.sync();
  return kNoise * (sides * over.tangent + (sides * bend + 0.5 * terms * terms) * over.root * length);
}

// CAGrad's, for k > 0. w, v: (n). mean: the mean of the norms.
template <class Lanes>
MTLKERNELS_HOST_DEVICE Pull cagrad_pull(const Lanes& lanes, const SimplexRoot& dual, double mean, double* w, double* v,
                                        const ActiveSetMemory& memory) {
  const int n = dual.n;
  int count = start_at_vertex(lanes, dual, w, memory);
  bool converged = active_set(lanes, dual, w, count, memory);
  double square = quadratic(lanes, dual.K, w, n, memory.Kx);
  if (is_stationary(lanes, dual.K, w, n, square)) {
    fill(lanes, v, n, 0.0);
    count = 0;
    converged = active_set(lanes, DualCone{dual.K, dual.b, n}, v, count, memory) && converged;
    if (std::sqrt(quadratic(lanes, dual.K, v, n, memory.Kx)) <= dual.k * (1 + 1e-9)) return {1.0, v, true, converged};
    double total = 0;  // the hull reaches past zero: go on from the point that shows it
    for (int i = 0; i < n; ++i) total += v[i];
    for (int i = lanes.lane; i < n; i += lanes.lanes) w[i] = v[i] / total;
    lanes.sync();
    converged = active_set(lanes, dual, w, count, memory) && converged;
    square = quadratic(lanes, dual.K, w, n, memory.Kx);
  }
  const double length = std::sqrt(square);
  return {dual.k / length, w, false, converged, moved_root(lanes, dual, w, length, mean, count, memory)};
}

// Whether noise may move d = g0 + pull by more than the tolerance: the pull, and by its own noise ||g0|| and so k.
template <class Lanes>
MTLKERNELS_HOST_DEVICE bool is_known(const Lanes& lanes, const Pull& pull, const double* A, double k, double mean,
                                     double mean_length, int n, double* total, double* memory) {
  if (pull.stationary) return true;  // the status says so
  for (int i = lanes.lane; i < n; i += lanes.lanes) total[i] = 1.0 / n + pull.share * pull.along[i];
  lanes.sync();
  const double length = std::sqrt(quadratic(lanes, A, total, n, memory)), ratio = mean / mean_length;
  return k * (pull.moved + 0.5 * kNoise * ratio * ratio) <= kTolerance * length;
}

// The ridge that keeps the pull inside the ball of radius k where it is not known.
template <class Lanes>
MTLKERNELS_HOST_DEVICE void add_ridge_to(const Lanes& lanes, double* A, int n) {
  for (int i = lanes.lane; i < n; i += lanes.lanes) A[i * n + i] *= 1 + kRidge;
  lanes.sync();
}

// weights = factor (1 / n + share * along) over the tasks that take part, and the flags.
template <class Lanes>
MTLKERNELS_HOST_DEVICE void pulled_mean(const Lanes& lanes, const Pull& pull, double c, Rescale rescale, bool sum,
                                        const int* active, int n, int tasks, double* weights, int64_t* status) {
  if (pull.stationary) flag_all(lanes, status, tasks, kStationary);
  if (!pull.converged) flag_all(lanes, status, tasks, kNoConvergence);
  const double divisor = rescale == Rescale::kSquare ? 1 + c * c : rescale == Rescale::kLinear ? 1 + c : 1.0;
  const double factor = (sum ? n : 1) / divisor;
  for (int r = lanes.lane; r < n; r += lanes.lanes)
    weights[active[r]] = factor * (1.0 / n + (pull.share > 0 ? pull.share * pull.along[r] : 0.0));
  lanes.sync();
}

// ||g0|| from b = A 1 / n.
MTLKERNELS_HOST_DEVICE inline double mean_length(const double* b, int n) {
  double square = 0;
  for (int r = 0; r < n; ++r) square += b[r] / n;
  return std::sqrt(square > 0 ? square : 0.0);
}

// The mean of the sqrt(A_ii).
MTLKERNELS_HOST_DEVICE inline double mean_norm(const double* A, int n) {
  double sum = 0;
  for (int i = 0; i < n; ++i) sum += std::sqrt(A[i * n + i]);
  return sum / n;
}

struct CAGrad : Solver {
  static constexpr const char* kName = "cagrad";
  static constexpr const char* kArguments[] = {"c", "rescale", "sum"};
  static constexpr int64_t doubles(int64_t tasks) { return tasks * tasks + 3 * tasks + active_set_doubles(tasks); }
  static constexpr int64_t ints(int64_t tasks) { return tasks + active_set_ints(tasks); }
  static const char* refusal(double c, auto...) {
    return c >= 0 && c < INFINITY ? nullptr : "c must be finite and at least 0";
  }

  template <class Lanes>
  MTLKERNELS_HOST_DEVICE static void solve(const Lanes& lanes, const Problem& problem, double c, Rescale rescale, bool sum) {
    const auto [K, tasks, weights, status, workspace, ints] = problem;
    int* active = ints;
    const int n = screen(lanes, K, tasks, status, active);
    fill(lanes, weights, tasks, n < 0 ? NAN : 0.0);
    if (n <= 0) return;
    double* A = workspace;
    double *b = A + tasks * tasks, *w = b + tasks, *v = w + tasks;
    const ActiveSetMemory memory(v + tasks, ints + tasks, n);
    normalise(lanes, K, tasks, active, n, A, b);
    const double k = c * mean_length(b, n);
    Pull pull{0.0, w, false, true};
    if (k > 0) {
      const SimplexRoot dual{A, b, k, n};
      const double mean = mean_norm(A, n);
      pull = cagrad_pull(lanes, dual, mean, w, v, memory);
      if (!is_known(lanes, pull, A, k, mean, k / c, n, memory.target, memory.Kx)) {
        add_ridge_to(lanes, A, n);
        pull = cagrad_pull(lanes, dual, mean, w, v, memory);
        flag_all(lanes, status, tasks, kIllConditioned);
      }
    }
    pulled_mean(lanes, pull, c, rescale, sum, active, n, tasks, weights, status);
  }
};

}  // namespace mtlkernels
