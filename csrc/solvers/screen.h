// What every solver asks of K first: which tasks can take part, and what is said of the others.
#pragma once

#include "lanes.h"

namespace mtlkernels {

// Flags of a task's status, OR-ed together. mtlkernels.Status names the same bits in Python.
enum Status : int64_t {
  kNonFinite = 1,     // the task's gradient holds a NaN or an infinity: all weights are NaN
  kZeroGradient = 2,  // the task's gradient is zero: it takes no part and its weight is 0
  kStationary = 4,    // zero lies in the convex hull of the gradients: the direction is a projection, not a step towards it
  kNoConvergence = 8, // the solver's bound on work was met first: the weights are the best point it reached
  kInvalidLoss = 32,     // the task's loss is not positive and finite, and the method needs it to be
  kIllConditioned = 64,  // the answer hung on differences below the rounding of K; a ridge above it bounds weights
  kNoSolution = 16,   // the method's equations have no solution: the weights solve them with a small ridge on K's diagonal
};

// Fills status and the list of tasks that take part. Returns their number, or -1 where some gradient is not finite
// (the caller then answers NaN). K: (T, T) row by row. `active` holds T ints of memory all lanes see.
template <class Lanes>
MTLKERNELS_HOST_DEVICE int screen(const Lanes& lanes, const double* K, int tasks, int64_t* status, int* active) {
  int count = 0;
  bool finite = true;
  for (int i = 0; i < tasks; ++i) {
    const double square = K[i * tasks + i];
    bool ok = square >= 0 && std::isfinite(square);  // a sum of squares that is negative is not one
    for (int j = 0; j < tasks; ++j)
      if (std::isfinite(K[j * tasks + j])) ok = ok && std::isfinite(K[i * tasks + j]);
    const bool takes_part = ok && square > 0;
    finite = finite && ok;
    if (lanes.lane == 0) {
      status[i] = !ok ? int64_t{kNonFinite} : takes_part ? 0 : int64_t{kZeroGradient};
      if (takes_part) active[count] = i;
    }
    count += takes_part ? 1 : 0;
  }
  lanes.sync();
  return finite ? count : -1;
}

template <class Lanes>
MTLKERNELS_HOST_DEVICE void fill(const Lanes& lanes, double* x, int n, double value) {
  for (int i = lanes.lane; i < n; i += lanes.lanes) x[i] = value;
  lanes.sync();
}

template <class Lanes>
MTLKERNELS_HOST_DEVICE void flag_all(const Lanes& lanes, int64_t* status, int tasks, int64_t flag) {
  for (int i = lanes.lane; i < tasks; i += lanes.lanes) status[i] |= flag;
  lanes.sync();
}

}  // namespace mtlkernels
