// Singular values and vectors of the gradients from K, small ones as exactly as large ones.
//
// The cosine matrix C is factorised as F^T F, F (rank, n), by Cholesky with pivots, which shows the rank. Scaling F's
// columns by the norms makes it a factor of K. Jacobi rotations of pairs of rows (one-sided: Hestenes, de Rijk) then make
// the rows orthogonal: r_k = sigma_k u_k with K = sum_k sigma_k^2 u_k u_k^T. Squaring nothing, this keeps the relative
// accuracy of small sigma_k that an eigensolver of K loses where norms differ much (Demmel, Veselic 1992).
#pragma once

#include "cosines.h"

namespace mtlkernels {

// A gradient whose part outside the span of the others has at most this share of its squared norm lies in it.
constexpr double kRankShare = 1e-13;
constexpr int kJacobiSweeps = 40;
constexpr double kJacobiShare = 2e-16;  // times n, of the terms of a product of rows: what rounding leaves of zero

// C: (n, n) with a diagonal of ones. F: (n, n), the first rank rows are filled. Returns the rank. Pivots are the largest
// of C with its columns scaled by `scale`, or of C where it is null: rows then come in the order of their lengths, with
// exact zeros where rotations would otherwise have to cancel what a long gradient adds to a short row. A pivot below
// `share` is none. `least`, where given, is the smallest that was taken.
template <class Lanes>
MTLKERNELS_HOST_DEVICE int factorise(const Lanes& lanes, const double* C, const double* scale, int n, double* F, double* rest,
                                     double share = kRankShare, double* least = nullptr) {
  fill(lanes, rest, n, 1.0);
  if (least) *least = 1.0;
  for (int k = 0; k < n; ++k) {
    int pivot = -1;
    double longest = 0;
    for (int i = 0; i < n; ++i) {
      const double length = rest[i] > share ? std::sqrt(rest[i]) * (scale ? scale[i] : 1.0) : 0.0;
      if (length > longest) longest = length, pivot = i;
    }
    if (pivot < 0) return k;
    if (least) *least = std::fmin(*least, rest[pivot]);
    const double root = std::sqrt(rest[pivot]);
    double* row = F + k * n;
    for (int i = lanes.lane; i < n; i += lanes.lanes) row[i] = C[pivot * n + i];
    for (int m = 0; m < k; ++m) {
      const double part = F[m * n + pivot];
      for (int i = lanes.lane; i < n; i += lanes.lanes) row[i] -= part * F[m * n + i];
    }
    lanes.sync();
    for (int i = lanes.lane; i < n; i += lanes.lanes) {
      const bool chosen = rest[i] == 0;  // an earlier pivot: the factor is triangular
      row[i] = chosen ? 0.0 : i == pivot ? root : row[i] / root;
      rest[i] = chosen || i == pivot ? 0.0 : std::fmax(rest[i] - row[i] * row[i], 1e-300);
    }
    lanes.sync();
  }
  return n;
}

struct RowProducts {
  double pp, qq, pq, terms;

  MTLKERNELS_HOST_DEVICE RowProducts(const double* p, const double* q, int n) : pp(0), qq(0), pq(0), terms(0) {
    for (int i = 0; i < n; ++i) {
      pp += p[i] * p[i];
      qq += q[i] * q[i];
      pq += p[i] * q[i];
      terms += std::fabs(p[i] * q[i]);
    }
  }
};

// Makes the rows of F (rank, n) orthogonal. False where the bound on sweeps was met.
template <class Lanes>
MTLKERNELS_HOST_DEVICE bool orthogonalise(const Lanes& lanes, double* F, int rank, int n) {
  for (int sweep = 0; sweep < kJacobiSweeps; ++sweep) {
    bool orthogonal = true;
    for (int a = 0; a + 1 < rank; ++a) {
      for (int b = a + 1; b < rank; ++b) {
        double *p = F + a * n, *q = F + b * n;
        const RowProducts dot(p, q, n);
        if (std::fabs(dot.pq) <= kJacobiShare * n * dot.terms) continue;
        orthogonal = false;
        const double ratio = (dot.qq - dot.pp) / (2 * dot.pq);
        const double tangent = (ratio < 0 ? -1 : 1) / (std::fabs(ratio) + std::sqrt(1 + ratio * ratio));
        const double cosine = 1 / std::sqrt(1 + tangent * tangent);
        const double sine = cosine * tangent;
        lanes.sync();
        for (int i = lanes.lane; i < n; i += lanes.lanes) {
          const double x = p[i], y = q[i];
          p[i] = cosine * x - sine * y;
          q[i] = sine * x + cosine * y;
        }
        lanes.sync();
      }
    }
    if (orthogonal) return true;
  }
  return false;
}

}  // namespace mtlkernels
