// K as cosines and norms.
#pragma once

#include "screen.h"

namespace mtlkernels {

// The cosines and norms of the tasks that take part, the norms as shares of the largest, which is returned.
template <class Lanes>
MTLKERNELS_HOST_DEVICE double cosines(const Lanes& lanes, const double* K, int tasks, const int* active, int n, double* C,
                                      double* norm) {
  double largest = 0;
  for (int a = 0; a < n; ++a) largest = std::fmax(largest, std::sqrt(K[active[a] * tasks + active[a]]));
  for (int r = lanes.lane; r < n; r += lanes.lanes) {
    const double length = std::sqrt(K[active[r] * tasks + active[r]]);
    norm[r] = length / largest;
    for (int s = 0; s < n; ++s)
      C[r * n + s] = r == s ? 1.0 : K[active[r] * tasks + active[s]] / length / std::sqrt(K[active[s] * tasks + active[s]]);
  }
  lanes.sync();
  return largest;
}

// K's diagonal times 1 + kRidge, in cosines.
template <class Lanes>
MTLKERNELS_HOST_DEVICE void add_ridge(const Lanes& lanes, double* C, int n) {
  lanes.sync();
  for (int r = lanes.lane; r < n; r += lanes.lanes)
    for (int s = 0; s < n; ++s)
      if (s != r) C[r * n + s] /= 1 + kRidge;
  lanes.sync();
}

}  // namespace mtlkernels
