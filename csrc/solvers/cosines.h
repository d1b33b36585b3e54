// K as cosines and norms, and what its own rounding leaves of an answer.
#pragma once

#include "screen.h"

namespace mtlkernels {

// A vector of length `length` that is a sum of terms whose lengths add up to `terms`: K's rounding counts with the terms'
// product, so below that its own length is not known, and with kNoise's margin to a third or better above. Also false
// where it is NaN.
MTLKERNELS_HOST_DEVICE inline bool stands_out(double length, double terms) {
  return kNoise * terms * terms <= length * length;
}

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

// K's diagonal times 1 + kNoise, in cosines: a ridge above what rounding can have taken from its eigenvalues.
template <class Lanes>
MTLKERNELS_HOST_DEVICE void add_ridge(const Lanes& lanes, double* C, int n) {
  lanes.sync();
  for (int r = lanes.lane; r < n; r += lanes.lanes)
    for (int s = 0; s < n; ++s)
      if (s != r) C[r * n + s] /= 1 + kNoise;
  lanes.sync();
}

}  // namespace mtlkernels
