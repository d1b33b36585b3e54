// Validates K for every solver: lists the tasks that take part and sets the status of the others.
#pragma once

#include "../common/solver.h"
#include "noise.h"

namespace mtlkernels {

// K_ij and K_ji may differ by this share: a K of one's own making may have been rounded to float32.
constexpr double kAsymmetry = 1e-6;

// Flags of a task's status, OR-ed together. mtlkernels.Status names the same bits in Python.
enum Status : int64_t {
  kNonFinite = 1,      // the task's gradient holds a NaN or an infinity: all weights are NaN
  kZeroGradient = 2,   // the task's gradient is zero: it takes no part and its weight is 0
  kStationary = 4,     // zero lies in the convex hull of the gradients: the direction is a projection, not a step towards it
  kNoConvergence = 8,  // the solver's bound on work was met first: the weights are the best point it reached
  kInvalidLoss = 32,   // the task's loss is not positive and finite, and the method needs it to be
  kInvalidGram = 128,  // K_tt < 0 or K_tj != K_jt: these are no inner products, and all weights are NaN
  kIllConditioned = 64,  // K's rounding may have moved the answer by more than kTolerance; the weights are bounded
  kNoSolution = 16,  // the method's equations have no solution: the weights solve them with a small ridge on K's diagonal
};

// Whether K_ij and K_ji are one inner product. What is not finite is another flag's.
MTLKERNELS_HOST_DEVICE inline bool agree(const double* K, int tasks, int i, int j) {
  const double there = K[i * tasks + j], back = K[j * tasks + i];
  if (there == back) return true;
  const double lengths = std::sqrt(K[i * tasks + i]) * std::sqrt(K[j * tasks + j]);
  return !(std::fabs(there - back) > kAsymmetry * (lengths + std::fabs(there) + std::fabs(back)));
}

// Fills status and the list of tasks that take part. Returns their number, or -1 where some gradient is not finite or
// some number no inner product (the caller then answers NaN). K: (T, T) row by row. `active` holds T ints of memory all
// lanes see.
template <class Lanes>
MTLKERNELS_HOST_DEVICE int screen(const Lanes& lanes, const double* K, int tasks, int64_t* status, int* active) {
  for (int i = lanes.lane; i < tasks; i += lanes.lanes) {
    const double square = K[i * tasks + i];
    bool finite = std::isfinite(square), products = square >= 0;
    for (int j = 0; j < tasks; ++j) {
      if (std::isfinite(K[j * tasks + j])) finite = finite && std::isfinite(K[i * tasks + j]);
      products = products && agree(K, tasks, i, j);
    }
    status[i] = !finite ? int64_t{kNonFinite} : !products ? int64_t{kInvalidGram} : int64_t{square > 0 ? 0 : kZeroGradient};
  }
  lanes.sync();
  int count = 0;
  bool usable = true;
  for (int i = 0; i < tasks; ++i) {
    usable = usable && (status[i] & (kNonFinite | kInvalidGram)) == 0;
    if (status[i] != 0) continue;
    if (lanes.lane == 0) active[count] = i;
    ++count;
  }
  lanes.sync();
  return usable ? count : -1;
}

// `screen` as a solver, which writes no weights.
struct TaskStatus : Solver {
  template <class Lanes>
  MTLKERNELS_HOST_DEVICE static void solve(const Lanes& lanes, const Problem& problem) {
    screen(lanes, problem.K, problem.tasks, problem.status, problem.ints);
  }
};

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
