// Aligned-MTL (arXiv 2305.19000): the gradients' matrix with all its singular values made equal, at a common length s.
// With K = sum_k sigma_k^2 u_k u_k^T over its rank: weights = B p,  B = s sum_k u_k u_k^T / sigma_k. With s the smallest
// no weight exceeds |p|. Gradients that lie in the span of the others but for K's rounding count as lying in it: with the
// smallest s always, as it would be rounding itself; with another where terms cancel to less of d than that rounding.
#pragma once

#include "eigen.h"

namespace mtlkernels {

enum class AlignedScale : int64_t { kMin = 0, kMedian = 1, kRms = 2 };  // s, of the sigma_k; of an even number the lower

constexpr int64_t aligned_workspace(int64_t tasks) { return 2 * tasks * tasks + 4 * tasks; }  // doubles

template <class Lanes>
MTLKERNELS_HOST_DEVICE double aligned_scale(const Lanes&, const double* sigma, int rank, AlignedScale scale) {
  double smallest = sigma[0], squares = 0, middle = 0;
  for (int k = 0; k < rank; ++k) {
    smallest = std::fmin(smallest, sigma[k]);
    squares += sigma[k] * sigma[k];
    int below = 0;
    for (int m = 0; m < rank; ++m) below += sigma[m] < sigma[k] || (sigma[m] == sigma[k] && m < k);
    if (below == (rank - 1) / 2) middle = sigma[k];
  }
  return scale == AlignedScale::kMin ? smallest : scale == AlignedScale::kMedian ? middle : std::sqrt(squares / rank);
}

// preference: (T) p, or null for ones. mean: divide by the sum of p over the tasks that take part.
template <class Lanes>
MTLKERNELS_HOST_DEVICE void aligned(const Lanes& lanes, const double* K, const double* preference, int tasks,
                                    AlignedScale scale, bool mean, double* weights, int64_t* status, double* workspace,
                                    int* active) {
  const int n = screen(lanes, K, tasks, status, active);
  fill(lanes, weights, tasks, n < 0 ? NAN : 0.0);
  if (n <= 0) return;
  double *C = workspace, *F = C + n * n, *norm = F + n * n, *p = norm + n, *sigma = p + n, *rest = sigma + n;
  cosines(lanes, K, tasks, active, n, C, norm);
  double total = 0;
  for (int i = 0; i < n; ++i) total += preference ? preference[active[i]] : 1.0;
  for (int i = lanes.lane; i < n; i += lanes.lanes) p[i] = preference ? preference[active[i]] : 1.0;
  lanes.sync();

  bool converged = true, known = false;
  for (double share = kRankShare; !known; share = kNoise) {
    double least;
    const int rank = factorise(lanes, C, norm, n, F, rest, share, &least);
    for (int i = lanes.lane; i < n; i += lanes.lanes)
      for (int k = 0; k < rank; ++k) F[k * n + i] *= norm[i];
    lanes.sync();
    converged = orthogonalise(lanes, F, rank, n);
    for (int k = lanes.lane; k < rank; k += lanes.lanes) sigma[k] = std::sqrt(RowProducts(F + k * n, F + k * n, n).pp);
    lanes.sync();

    const double length = aligned_scale(lanes, sigma, rank, scale);
    const double factor = length / (mean && total > 0 ? total : 1.0);
    double square = 0, terms = 0;
    for (int i = lanes.lane; i < n; i += lanes.lanes) weights[active[i]] = 0;
    lanes.sync();
    for (int k = 0; k < rank; ++k) {
      const double* row = F + k * n;
      double part = 0;
      for (int i = 0; i < n; ++i) part += row[i] / sigma[k] * p[i];
      square += factor * part * factor * part;
      for (int i = lanes.lane; i < n; i += lanes.lanes) weights[active[i]] += factor / sigma[k] * part * (row[i] / sigma[k]);
    }
    lanes.sync();
    for (int i = 0; i < n; ++i) terms += std::fabs(weights[active[i]]) * norm[i];
    known = share == kNoise || (scale == AlignedScale::kMin ? least > kNoise : stands_out(std::sqrt(square), terms));
    if (!known) flag_all(lanes, status, tasks, kIllConditioned);
    lanes.sync();
  }
  if (!converged) flag_all(lanes, status, tasks, kNoConvergence);
}

}  // namespace mtlkernels
