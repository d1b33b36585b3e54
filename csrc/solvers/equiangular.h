// The direction that makes the same angle with every gradient: ConFIG (arXiv 2408.11104), IMTL-G (ICLR 2021).
//
// y = C^+ 1 with C the cosines; d = sum_i y_i g_i / ||g_i|| has <u_i, d> = 1 for all i, or as nearly as the gradients
// allow. The two methods differ in its length. Where the answer would hang on K's rounding, gradients that lie in the span
// of the others but for that rounding count as lying in it.
#pragma once

#include "eigen.h"

namespace mtlkernels {

enum class EquiangularLength : int64_t {
  kProjections = 0,  // ConFIG: the sum of the gradients' projections on d; where that is negative, 0
  kUnitSum = 1,      // IMTL-G: sum_i w_i = 1; where the sum is not positive, sum_i |w_i| = 1
};

constexpr int64_t equiangular_workspace(int64_t tasks) { return 2 * tasks * tasks + 4 * tasks; }  // doubles

// A singular vector whose entries add up to less than this has no part in 1: the sum is rounding of what it sums.
constexpr double kVanishingSum = 1e-14;
// A sum of weights below this share of the sum of their sizes is rounding of K, and not positive; below the next, exactly.
constexpr double kPositiveSum = kNoise, kNoSum = 1e-12;

// y = C^+ 1 and e = C y from the orthogonal rows of C's factor. Returns y^T C y, 0 where no vector has a part in 1. Not
// `sure` where all that have one may have it from rounding of C alone, as of opposite gradients.
template <class Lanes>
MTLKERNELS_HOST_DEVICE double equal_projections(const Lanes& lanes, const double* F, int rank, int n, double vanishing,
                                                double* y, double* e, bool& sure) {
  double reach = 0;
  sure = false;
  fill(lanes, y, n, 0.0);
  fill(lanes, e, n, 0.0);
  for (int k = 0; k < rank; ++k) {
    const double* row = F + k * n;
    double square = 0, sum = 0;
    for (int i = 0; i < n; ++i) {
      square += row[i] * row[i];
      sum += row[i];
    }
    if (std::fabs(sum) <= vanishing * std::sqrt(square)) continue;
    sure = sure || std::fabs(sum) > kNoise * std::sqrt(square);
    const double part = sum / square;  // (u_k . 1) / sigma_k
    reach += part * part;
    for (int i = lanes.lane; i < n; i += lanes.lanes) {
      e[i] += part * row[i];
      y[i] += part / square * row[i];
    }
  }
  lanes.sync();
  return reach;
}

template <class Lanes>
MTLKERNELS_HOST_DEVICE void equiangular(const Lanes& lanes, const double* K, int tasks, EquiangularLength length,
                                        double* weights, int64_t* status, double* workspace, int* active) {
  const int n = screen(lanes, K, tasks, status, active);
  fill(lanes, weights, tasks, n < 0 ? NAN : 0.0);
  if (n <= 0) return;
  double *C = workspace, *F = C + n * n, *norm = F + n * n, *rest = norm + n, *y = rest + n, *e = y + n;
  cosines(lanes, K, tasks, active, n, C, norm);
  double reach = 0;
  bool converged = true, known = false, sure = false;
  for (double share = kRankShare; !known; share = kNoise) {
    const int rank = factorise(lanes, C, nullptr, n, F, rest, share);
    converged = orthogonalise(lanes, F, rank, n);
    reach = equal_projections(lanes, F, rank, n, share == kNoise ? kNoise : kVanishingSum, y, e, sure);
    double terms = 0;
    for (int i = 0; i < n; ++i) terms += std::fabs(y[i]);
    known = share == kNoise || reach == 0 || (sure && stands_out(std::sqrt(reach), terms));
    if (!known) flag_all(lanes, status, tasks, kIllConditioned);
  }
  if (!converged) flag_all(lanes, status, tasks, kNoConvergence);

  double sum = 0, size = 0, projections = 0;
  for (int i = 0; i < n; ++i) {
    sum += y[i] / norm[i];
    size += std::fabs(y[i] / norm[i]);
    projections += norm[i] * e[i];
  }
  // A negative sum of projections (gradients are dependent then) leaves 0 alone on the line of d: to one side the sum
  // of the losses rises, to the other that of the losses in units of their gradients.
  const bool nowhere = length == EquiangularLength::kProjections && projections < 0;
  if (!(reach > 0) || nowhere) return flag_all(lanes, status, tasks, kStationary);
  if (length == EquiangularLength::kUnitSum && std::fabs(sum) <= kPositiveSum * size && std::fabs(sum) > kNoSum * size)
    flag_all(lanes, status, tasks, kIllConditioned);
  const double factor = length == EquiangularLength::kProjections ? projections / reach
                                                                  : 1 / (sum > kPositiveSum * size ? sum : size);
  for (int i = lanes.lane; i < n; i += lanes.lanes) weights[active[i]] = factor * y[i] / norm[i];
  lanes.sync();
}

}  // namespace mtlkernels
