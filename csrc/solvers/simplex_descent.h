// Projected descent on the simplex over a cross-Gram A = G1 G2^T of two batches, which is not symmetric, from weights
// that one step hands to the next: SDMGrad (arXiv 2305.18409) and MoDo (arXiv 2305.20057).
//     v <- momentum v + A (w + pull / T) + damping w,   w <- projection on the simplex of w - rate v,   `rounds` times
// from v = 0. The step's weights are (w + pull / T) / (1 + pull). With `relative`, A counts in units of s^2, s the mean
// of the sqrt(max(A_ii, 0)): the same step at every scale of the gradients. Where s = 0 there is no unit and w stays.
#pragma once

#include "../common/solver.h"
#include "../linalg/screen.h"

namespace mtlkernels {

// As `screen`, for products of two batches: a task takes part unless its row and its column are zero.
template <class Lanes>
MTLKERNELS_HOST_DEVICE int screen_cross(const Lanes& lanes, const double* A, int tasks, int64_t* status, int* active) {
  int count = 0;
  bool finite = true;
  for (int i = 0; i < tasks; ++i) {
    bool ok = std::isfinite(A[i * tasks + i]), zero = true;
    for (int j = 0; j < tasks; ++j) {
      const double there = A[i * tasks + j], back = A[j * tasks + i];
      if (std::isfinite(A[j * tasks + j])) ok = ok && std::isfinite(there) && std::isfinite(back);
      zero = zero && there == 0 && back == 0;
    }
    finite = finite && ok;
    if (lanes.lane == 0) {
      status[i] = !ok ? int64_t{kNonFinite} : zero ? int64_t{kZeroGradient} : 0;
      if (ok && !zero) active[count] = i;
    }
    count += ok && !zero ? 1 : 0;
  }
  lanes.sync();
  return finite ? count : -1;
}

// x <- the point of {x >= 0, sum x = 1} nearest to it. Exact: entries that a common shift of all leaves negative are
// zero, and each round takes the shift over the ones that are left (Michelot 1986), so n rounds do.
template <class Lanes>
MTLKERNELS_HOST_DEVICE void project_to_simplex(const Lanes& lanes, double* x, int n) {
  double largest = x[0];
  for (int i = 1; i < n; ++i) largest = std::fmax(largest, x[i]);
  double shift = -1;  // of x - largest: what lies lower than that cannot be in the support
  for (int round = 0, left = n + 1; round < n; ++round) {
    double sum = 0;
    int count = 0;
    for (int i = 0; i < n; ++i)
      if (x[i] - largest > shift) sum += x[i] - largest, ++count;
    if (count == left) break;
    left = count;
    shift = (sum - 1) / count;
  }
  lanes.sync();
  for (int i = lanes.lane; i < n; i += lanes.lanes) x[i] = std::fmax(x[i] - largest - shift, 0.0);
  lanes.sync();
}

// state: (T) on the simplex; next: the next step's. A task without gradient keeps its share of the state.
struct SimplexDescent : Solver {
  static constexpr const char* kName = "simplex_descent";
  static constexpr const char* kArguments[] = {"state", "rounds", "rate", "momentum", "pull", "damping", "relative"};
  static constexpr bool kOneBatch = false;
  static constexpr int64_t doubles(int64_t tasks) { return 2 * tasks; }

  template <class Lanes>
  MTLKERNELS_HOST_DEVICE static void solve(const Lanes& lanes, const Problem& problem, TaskNumbers state, int64_t rounds,
                                           double rate, double momentum, double pull, double damping, bool relative,
                                           NextTaskNumbers next) {
    const auto [A, tasks, weights, status, workspace, active] = problem;
    const int n = screen_cross(lanes, A, tasks, status, active);
    fill(lanes, weights, tasks, n < 0 ? NAN : 0.0);
    for (int i = lanes.lane; i < tasks; i += lanes.lanes) next[i] = state[i];
    lanes.sync();
    if (n <= 0) return;
    double *w = workspace, *v = w + tasks;
    double share = 0, length = 0;
    for (int r = 0; r < n; ++r) {
      share += state[active[r]];
      length += std::sqrt(std::fmax(A[active[r] * tasks + active[r]], 0.0)) / n;
    }
    for (int r = lanes.lane; r < n; r += lanes.lanes) {
      w[r] = share > 0 ? state[active[r]] / share : 1.0 / n;
      v[r] = 0;
    }
    lanes.sync();
    const double unit = relative ? length : 1.0;
    for (int64_t round = 0; unit > 0 && round < rounds; ++round) {
      for (int r = lanes.lane; r < n; r += lanes.lanes) {
        double slope = 0;
        for (int s = 0; s < n; ++s) slope += A[active[r] * tasks + active[s]] / unit / unit * (w[s] + pull / n);
        v[r] = momentum * v[r] + slope + damping * w[r];
      }
      lanes.sync();
      for (int r = lanes.lane; r < n; r += lanes.lanes) w[r] -= rate * v[r];
      lanes.sync();
      project_to_simplex(lanes, w, n);
    }
    for (int r = lanes.lane; r < n; r += lanes.lanes) {
      weights[active[r]] = (w[r] + pull / n) / (1 + pull);
      next[active[r]] = (share > 0 ? share : 0.0) * w[r];
    }
    lanes.sync();
  }
};

}  // namespace mtlkernels
