// The direction that makes the same angle with every gradient: ConFIG (arXiv 2408.11104), IMTL-G (ICLR 2021).
//
// y = C^+ 1 with C the cosines; d = sum_i y_i g_i / ||g_i|| has <u_i, d> = 1 for all i, or as nearly as the gradients
// allow: e = C y. The two methods differ in its length.
//
// What noise E of C moves, |E_ij| <= kNoise: with C = sum_k lambda_k v_k v_k^T over its rank, a_k = sum_i |v_ki|, r = 1 - e,
// |.| the sum of absolute values:
//     d     by kNoise a_k (|y| / sqrt(lambda_k) + |r| / lambda_k^(3/2)) along the k-th singular vector,
//     <x, y> by kNoise (|C^+ x| |y| + |C^+ C^+ x| |r| + |x - C C^+ x| |C^+ y|) for a vector x,
//     <x, e> by kNoise (|C^+ x| |r| + |x - C C^+ x| |y|).
#pragma once

#include "../common/solver.h"
#include "../linalg/eigen.h"

namespace mtlkernels {

enum class EquiangularLength : int64_t {
  kProjections = 0,  // ConFIG: the sum of the gradients' projections on d; where that is negative, 0
  kUnitSum = 1,      // IMTL-G: sum_i w_i = 1; where the sum is not positive, sum_i |w_i| = 1
  kLast = kUnitSum,
};

// A sum of weights below this share of the sum of their sizes does not count as positive. Below the next it is zero.
constexpr double kPositiveSum = 1e-6, kNoSum = 1e-12;

// The sum of absolute values.
MTLKERNELS_HOST_DEVICE inline double absolute_sum(const double* x, int n) {
  double sum = 0;
  for (int i = 0; i < n; ++i) sum += std::fabs(x[i]);
  return sum;
}

// to = sum_k (v_k . x) lambda_k^-power v_k from the orthogonal rows of C's factor, power 0 .. 2.
template <class Lanes>
MTLKERNELS_HOST_DEVICE void apply_inverse(const Lanes& lanes, const double* F, int rank, int n, int power, const double* x,
                                          double* to) {
  for (int i = lanes.lane; i < n; i += lanes.lanes) {
    double total = 0;
    for (int k = 0; k < rank; ++k) {
      const double* row = F + k * n;
      double square = 0, along = 0;
      for (int j = 0; j < n; ++j) {
        square += row[j] * row[j];
        along += row[j] * x[j];
      }
      double part = along / square * row[i];
      for (int m = 0; m < power; ++m) part /= square;
      total += part;
    }
    to[i] = total;
  }
  lanes.sync();
}

// y = C^+ 1, e = C y and r = 1 - e. Returns y^T C y, and the bound on what noise moves of its root.
template <class Lanes>
MTLKERNELS_HOST_DEVICE double equal_projections(const Lanes& lanes, const double* F, int rank, int n, double* y, double* e,
                                                double* r, double* moved) {
  double reach = 0;
  fill(lanes, y, n, 0.0);
  fill(lanes, e, n, 0.0);
  for (int k = 0; k < rank; ++k) {
    const double* row = F + k * n;
    double square = 0, sum = 0;
    for (int i = 0; i < n; ++i) {
      square += row[i] * row[i];
      sum += row[i];
    }
    const double part = sum / square;  // (v_k . 1) / sqrt(lambda_k)
    reach += part * part;
    for (int i = lanes.lane; i < n; i += lanes.lanes) {
      e[i] += part * row[i];
      y[i] += part / square * row[i];
    }
  }
  lanes.sync();
  for (int i = lanes.lane; i < n; i += lanes.lanes) r[i] = rank == n ? 0.0 : 1 - e[i];
  lanes.sync();
  const double y_size = absolute_sum(y, n), r_size = absolute_sum(r, n);
  double squares = 0;
  for (int k = 0; k < rank; ++k) {
    double square = 0;
    for (int i = 0; i < n; ++i) square += F[k * n + i] * F[k * n + i];
    const double change = absolute_sum(F + k * n, n) / square * (y_size + r_size / square);  // a_k / sqrt(lambda_k)
    squares += change * change;
  }
  lanes.sync();
  *moved = kNoise * std::sqrt(squares);
  return reach;
}

// The bound on what noise moves of <x, y>. to: (n) memory.
template <class Lanes>
MTLKERNELS_HOST_DEVICE double moved_sum(const Lanes& lanes, const double* F, int rank, int n, const double* x,
                                        const double* y, const double* r, double* to) {
  apply_inverse(lanes, F, rank, n, 1, x, to);
  double moved = absolute_sum(to, n) * absolute_sum(y, n);
  lanes.sync();
  if (rank < n) {
    apply_inverse(lanes, F, rank, n, 2, x, to);
    moved += absolute_sum(to, n) * absolute_sum(r, n);
    lanes.sync();
    apply_inverse(lanes, F, rank, n, 0, x, to);
    double outside = 0;
    for (int i = 0; i < n; ++i) outside += std::fabs(x[i] - to[i]);
    lanes.sync();
    apply_inverse(lanes, F, rank, n, 1, y, to);
    moved += outside * absolute_sum(to, n);
    lanes.sync();
  }
  return kNoise * moved;
}

// Of <x, e>, which is the sum of x where C has full rank.
template <class Lanes>
MTLKERNELS_HOST_DEVICE double moved_image(const Lanes& lanes, const double* F, int rank, int n, const double* x,
                                          const double* y, const double* r, double* to) {
  if (rank == n) return 0;
  apply_inverse(lanes, F, rank, n, 1, x, to);
  const double inside = absolute_sum(to, n);
  lanes.sync();
  apply_inverse(lanes, F, rank, n, 0, x, to);
  double outside = 0;
  for (int i = 0; i < n; ++i) outside += std::fabs(x[i] - to[i]);
  lanes.sync();
  return kNoise * (inside * absolute_sum(r, n) + outside * absolute_sum(y, n));
}

// Of y^T C y = <1, y>.
template <class Lanes>
MTLKERNELS_HOST_DEVICE double moved_square(const Lanes& lanes, const double* F, int rank, int n, const double* y,
                                           const double* r, double* to) {
  double moved = absolute_sum(y, n) * absolute_sum(y, n);
  if (rank < n) {
    apply_inverse(lanes, F, rank, n, 1, y, to);
    moved += 2 * absolute_sum(to, n) * absolute_sum(r, n);
    lanes.sync();
  }
  return kNoise * moved;
}

struct Equiangular : Solver {
  static constexpr const char* kName = "equiangular";
  static constexpr const char* kArguments[] = {"length"};
  static constexpr int64_t doubles(int64_t tasks) { return 2 * tasks * tasks + 8 * tasks + factor_doubles(tasks); }

  template <class Lanes>
  MTLKERNELS_HOST_DEVICE static void solve(const Lanes& lanes, const Problem& problem, EquiangularLength length) {
    const auto [K, tasks, weights, status, workspace, active] = problem;
    const int n = screen(lanes, K, tasks, status, active);
    fill(lanes, weights, tasks, n < 0 ? NAN : 0.0);
    if (n <= 0) return;
    double *S = workspace, *F = S + n * n, *norm = F + n * n, *unit = norm + n, *y = unit + n, *e = y + n, *r = e + n;
    double *x = r + n, *to = x + n, *memory = to + n;
    scaled_gram(lanes, K, tasks, active, n, S, norm, unit);
    const Rank found = factorise(lanes, S, nullptr, n, F, memory);
    const int rank = found.rank;
    for (int i = lanes.lane; i < n; i += lanes.lanes)
      for (int k = 0; k < rank; ++k) F[k * n + i] /= unit[i];
    lanes.sync();
    if (!orthogonalise(lanes, F, rank, n)) flag_all(lanes, status, tasks, kNoConvergence);
    double moved = 0;
    const double reach = equal_projections(lanes, F, rank, n, y, e, r, &moved), size = std::sqrt(reach);
    if (found.doubtful) flag_all(lanes, status, tasks, kIllConditioned);
    if (!(2 * moved < size)) return flag_all(lanes, status, tasks, kStationary);  // the unit gradients add up to zero

    double sum = 0, sizes = 0, projections = 0;
    for (int i = 0; i < n; ++i) {
      sum += y[i] / norm[i];
      sizes += std::fabs(y[i] / norm[i]);
      projections += norm[i] * e[i];
    }
    double factor = 0, change = 0;
    if (length == EquiangularLength::kProjections) {
      // A negative sum of projections (gradients are dependent then) leaves 0 alone on the line of d: to one side the sum
      // of the losses rises, to the other that of the losses in units of their gradients.
      factor = projections < 0 ? 0.0 : projections / reach;
      change = moved_square(lanes, F, rank, n, y, r, to) / reach +
               moved_image(lanes, F, rank, n, norm, y, r, to) / std::fabs(projections);
    } else {
      const bool positive = sum > kPositiveSum * sizes;
      factor = 1 / (positive ? sum : sizes);
      for (int i = lanes.lane; i < n; i += lanes.lanes) x[i] = 1 / norm[i];
      lanes.sync();
      const double moved_total = moved_sum(lanes, F, rank, n, x, y, r, to);
      if (std::fabs(sum) > kNoSum * sizes) {  // else it is zero for a reason
        change = moved_total * factor;
        if (moved_total >= std::fabs(sum - kPositiveSum * sizes)) change = 1;  // which of the two it is
      }
    }
    const double error = moved / size + change;
    if (!(error <= kTolerance)) flag_all(lanes, status, tasks, kIllConditioned);
    if (factor == 0) return flag_all(lanes, status, tasks, kStationary);
    for (int i = lanes.lane; i < n; i += lanes.lanes) weights[active[i]] = factor * y[i] / norm[i];
    lanes.sync();
  }
};

}  // namespace mtlkernels
