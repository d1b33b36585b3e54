// min 1/2 v^T K v + b^T v over v >= 0. With b = K u this is the projection of G^T u onto the cone of directions that
// conflict with no task, {d : G d >= 0}: d = G^T (u + v).
#pragma once

#include "active_set.h"

namespace mtlkernels {

struct DualCone {
  const double* K;  // (n, n)
  const double* b;  // (n)
  int n;

  template <class Lanes>
  MTLKERNELS_HOST_DEVICE bool minimise(const Lanes& lanes, const int* support, int count,
                                       const ActiveSetMemory& memory) const {
    if (lanes.lane == 0) {
      for (int s = 0; s < count; ++s) memory.target[s] = -b[support[s]];
      cholesky_solve(memory.L, n, count, memory.target);
    }
    lanes.sync();
    return true;
  }

  template <class Lanes>
  MTLKERNELS_HOST_DEVICE int worst_violation(const Lanes& lanes, const double* v, const ActiveSetMemory& memory) const {
    multiply(lanes, K, v, n, memory.Kx);
    int worst = -1;
    double worst_share = -kViolation;
    for (int i = 0; i < n; ++i) {
      const double slack = memory.Kx[i] + b[i];
      if (v[i] > 0 || slack >= 0) continue;
      double size = std::fabs(b[i]);
      for (int j = 0; j < n; ++j) size += std::fabs(K[i * n + j]) * v[j];
      if (slack < worst_share * size) {
        worst_share = slack / size;
        worst = i;
      }
    }
    return worst;
  }
};

}  // namespace mtlkernels
