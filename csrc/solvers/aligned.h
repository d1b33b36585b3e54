// Aligned-MTL (arXiv 2305.19000): the gradients' matrix with all its singular values made equal, at a common length s.
// With K = sum_k sigma_k^2 u_k u_k^T over its rank: weights = B p,  B = s sum_k u_k u_k^T / sigma_k. With s the smallest
// no weight exceeds |p|.
//
// What noise E of K moves: with q_k = u_k . p and |u_k^T E u_l| <= kNoise a_k a_l, a_k = sum_i |u_ki| n_i, the direction's
// component along the k-th singular vector by s sum_l kNoise a_k a_l |q_l| / (sigma_l (sigma_k + sigma_l)) at most, and s
// itself, where it is the singular value sigma_m, by kNoise a_m^2 / (2 sigma_m). The direction is s |q| long.
#pragma once

#include "../common/solver.h"
#include "../linalg/eigen.h"

namespace mtlkernels {

enum class AlignedScale : int64_t {
  kMin = 0,
  kMedian = 1,
  kRms = 2,
  kLast = kRms
};  // s, of the sigma_k; of an even number the lower

// s, and which sigma_k it is, or -1.
struct AlignedLength {
  double length;
  int which;

  MTLKERNELS_HOST_DEVICE AlignedLength(const double* sigma, int rank, AlignedScale scale) : length(0), which(-1) {
    double squares = 0;
    for (int k = 0; k < rank; ++k) {
      squares += sigma[k] * sigma[k];
      int below = 0;
      for (int m = 0; m < rank; ++m) below += sigma[m] < sigma[k] || (sigma[m] == sigma[k] && m < k);
      if (below == (scale == AlignedScale::kMin ? 0 : (rank - 1) / 2)) which = k;
    }
    if (scale == AlignedScale::kRms) which = -1;
    length = which < 0 ? std::sqrt(squares / rank) : sigma[which];
  }
};

// preference: (T) p, or null for ones. mean: divide by the sum of p over the tasks that take part.
struct Aligned : Solver {
  static constexpr const char* kName = "aligned";
  static constexpr const char* kArguments[] = {"preference", "scale", "mean"};
  static constexpr int64_t doubles(int64_t tasks) { return 2 * tasks * tasks + 7 * tasks + factor_doubles(tasks); }

  template <class Lanes>
  MTLKERNELS_HOST_DEVICE static void solve(const Lanes& lanes, const Problem& problem, OptionalNumbers preference,
                                           AlignedScale scale, bool mean) {
    const auto [K, tasks, weights, status, workspace, active] = problem;
    const int n = screen(lanes, K, tasks, status, active);
    fill(lanes, weights, tasks, n < 0 ? NAN : 0.0);
    if (n <= 0) return;
    double *S = workspace, *F = S + n * n, *norm = F + n * n, *unit = norm + n, *p = unit + n, *sigma = p + n;
    double *part = sigma + n, *reach = part + n, *memory = reach + n;
    scaled_gram(lanes, K, tasks, active, n, S, norm, unit);
    double total = 0;
    for (int i = 0; i < n; ++i) total += preference ? preference[active[i]] : 1.0;
    for (int i = lanes.lane; i < n; i += lanes.lanes) p[i] = preference ? preference[active[i]] : 1.0;
    lanes.sync();

    const Rank found = factorise(lanes, S, norm, n, F, memory);
    const int rank = found.rank;
    for (int i = lanes.lane; i < n; i += lanes.lanes)
      for (int k = 0; k < rank; ++k) F[k * n + i] *= norm[i] / unit[i];
    lanes.sync();
    if (!orthogonalise(lanes, F, rank, n)) flag_all(lanes, status, tasks, kNoConvergence);
    for (int k = lanes.lane; k < rank; k += lanes.lanes) {
      const double* row = F + k * n;
      double square = 0, along = 0, terms = 0;
      for (int i = 0; i < n; ++i) square += row[i] * row[i];
      sigma[k] = std::sqrt(square);
      for (int i = 0; i < n; ++i) {
        along += row[i] / sigma[k] * p[i];
        terms += std::fabs(row[i]) / sigma[k] * norm[i];
      }
      part[k] = along;
      reach[k] = terms;
    }
    lanes.sync();

    const AlignedLength s(sigma, rank, scale);
    const double factor = s.length / (mean && total > 0 ? total : 1.0);
    double square = 0, moved = 0;
    for (int k = 0; k < rank; ++k) {
      double change = 0;
      for (int l = 0; l < rank; ++l) change += reach[k] * reach[l] * std::fabs(part[l]) / (sigma[l] * (sigma[k] + sigma[l]));
      square += part[k] * part[k];
      moved += change * change;
    }
    const double stretch = s.which < 0 ? 0.0 : reach[s.which] * reach[s.which] / (2 * s.length * s.length);
    const double size = std::sqrt(square);
    const bool known = size == 0 || kNoise * (std::sqrt(moved) + stretch * size) <= kTolerance * size;
    if (found.doubtful || !known) flag_all(lanes, status, tasks, kIllConditioned);
    for (int i = lanes.lane; i < n; i += lanes.lanes) {
      double weight = 0;
      for (int k = 0; k < rank; ++k) weight += factor / sigma[k] * part[k] * (F[k * n + i] / sigma[k]);
      weights[active[i]] = weight;
    }
    lanes.sync();
  }
};

}  // namespace mtlkernels
