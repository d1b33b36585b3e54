// min b^T w + k sqrt(w^T K w) over the simplex {w >= 0, sum w = 1}, k > 0.
//
// Over the affine hull of a support S the minimiser is in closed form. With K_S y = 1, K_S z = b, s = 1^T y, t = 1^T z:
//     p = y / s,  q = (t / s) y - z,  w = p + mu q,  mu^2 = (1 / s) / (k^2 - q^T K q),
// where mu = sqrt(w^T K w) / k; for k^2 <= q^T K q the objective falls for ever along q.
#pragma once

#include "active_set.h"
#include "screen.h"

namespace mtlkernels {

struct SimplexRoot {
  const double* K;  // (n, n)
  const double* b;  // (n)
  double k;
  int n;

  MTLKERNELS_HOST_DEVICE double vertex(int i) const { return b[i] + k * std::sqrt(K[i * n + i]); }

  template <class Lanes>
  MTLKERNELS_HOST_DEVICE bool minimise(const Lanes& lanes, const int* support, int count,
                                       const ActiveSetMemory& memory) const {
    double *y = memory.y, *z = memory.z;
    lanes.sync();
    if (lanes.lane == 0) {
      for (int r = 0; r < count; ++r) y[r] = 1.0, z[r] = b[support[r]];
      cholesky_solve(memory.L, n, count, y);
      cholesky_solve(memory.L, n, count, z);
    }
    lanes.sync();
    double s = 0, t = 0;
    for (int r = 0; r < count; ++r) s += y[r], t += z[r];
    double curvature = 0;  // q^T K q = -q^T b
    for (int r = 0; r < count; ++r) curvature -= (t / s * y[r] - z[r]) * b[support[r]];
    const bool bounded = k * k > curvature;
    const double mu = bounded ? std::sqrt(1.0 / (s * (k * k - curvature))) : 1.0;
    for (int r = lanes.lane; r < count; r += lanes.lanes)
      memory.target[r] = (bounded ? y[r] / s : 0.0) + mu * (t / s * y[r] - z[r]);
    lanes.sync();
    return bounded;
  }

  // The condition of a task outside the support: mu b_i + (K w)_i >= nu, the value all tasks of the support share.
  template <class Lanes>
  MTLKERNELS_HOST_DEVICE int worst_violation(const Lanes& lanes, const double* w, const ActiveSetMemory& memory) const {
    multiply(lanes, K, w, n, memory.Kx);
    double square = 0;
    for (int i = 0; i < n; ++i) square += w[i] * memory.Kx[i];
    const double mu = std::sqrt(square > 0 ? square : 0.0) / k;
    double nu = 0;
    for (int i = 0; i < n; ++i) nu += w[i] * (mu * b[i] + memory.Kx[i]);
    int worst = -1;
    double worst_share = -kViolation;
    for (int i = 0; i < n; ++i) {
      const double slack = mu * b[i] + memory.Kx[i] - nu;
      if (w[i] > 0 || slack >= 0) continue;
      double size = std::fabs(mu * b[i]) + std::fabs(nu);
      for (int j = 0; j < n; ++j) size += std::fabs(K[i * n + j]) * w[j];
      if (slack < worst_share * size) {
        worst_share = slack / size;
        worst = i;
      }
    }
    return worst;
  }
};

// min linear b^T w + square w^T K w over the simplex, square > 0; with linear = 0 the point of the hull nearest to zero.
//
// Over the affine hull of a support, with p and q as above: w = p + linear / (2 square) q. The sum of q is zero but for
// rounding, and is made so: in small units linear / (2 square) is without bound, and w has to stay in the hull.
struct SimplexSquare {
  const double* K;  // (n, n)
  const double* b;  // (n), not read where linear is 0
  double linear, square;
  int n;

  MTLKERNELS_HOST_DEVICE double vertex(int i) const { return (linear > 0 ? linear * b[i] : 0.0) + square * K[i * n + i]; }

  template <class Lanes>
  MTLKERNELS_HOST_DEVICE bool minimise(const Lanes& lanes, const int* support, int count,
                                       const ActiveSetMemory& memory) const {
    double *y = memory.y, *z = memory.z;
    lanes.sync();
    if (lanes.lane == 0) {
      for (int r = 0; r < count; ++r) y[r] = 1.0, z[r] = linear > 0 ? b[support[r]] : 0.0;
      cholesky_solve(memory.L, n, count, y);
      if (linear > 0) cholesky_solve(memory.L, n, count, z);
    }
    lanes.sync();
    double s = 0, t = 0;
    for (int r = 0; r < count; ++r) s += y[r], t += z[r];
    double excess = 0;
    for (int r = 0; r < count; ++r) excess += t / s * y[r] - z[r];
    const double ratio = linear > 0 ? linear / (2 * square) : 0.0;
    for (int r = lanes.lane; r < count; r += lanes.lanes)
      memory.target[r] = count == 1 ? 1.0 : y[r] / s + ratio * ((t - excess) / s * y[r] - z[r]);
    lanes.sync();
    return true;
  }

  // The condition of a task outside the support: linear b_i + 2 square (K w)_i >= nu.
  template <class Lanes>
  MTLKERNELS_HOST_DEVICE int worst_violation(const Lanes& lanes, const double* w, const ActiveSetMemory& memory) const {
    multiply(lanes, K, w, n, memory.Kx);
    const auto fixed = [&](int i) { return linear > 0 ? linear * b[i] : 0.0; };
    double nu = 0;
    for (int i = 0; i < n; ++i) nu += w[i] * (fixed(i) + 2 * square * memory.Kx[i]);
    int worst = -1;
    double worst_share = -kViolation;
    for (int i = 0; i < n; ++i) {
      const double slack = fixed(i) + 2 * square * memory.Kx[i] - nu;
      if (w[i] > 0 || slack >= 0) continue;
      double size = std::fabs(fixed(i)) + std::fabs(nu);
      for (int j = 0; j < n; ++j) size += 2 * square * std::fabs(K[i * n + j]) * w[j];
      if (slack < worst_share * size) {
        worst_share = slack / size;
        worst = i;
      }
    }
    return worst;
  }
};

// The best single task to start from.
template <class Lanes, class Problem>
MTLKERNELS_HOST_DEVICE int start_at_vertex(const Lanes& lanes, const Problem& problem, double* w,
                                           const ActiveSetMemory& memory) {
  int best = 0;
  for (int i = 1; i < problem.n; ++i)
    if (problem.vertex(i) < problem.vertex(best)) best = i;
  fill(lanes, w, problem.n, 0.0);
  if (lanes.lane == 0) w[best] = 1.0, memory.support[0] = best;
  lanes.sync();
  return 1;
}

}  // namespace mtlkernels
