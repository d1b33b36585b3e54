// Singular values and vectors of the gradients from K, small ones as exactly as K knows them.
//
// K is scaled by powers of two, exactly, to S with a diagonal in 1 .. 4, and factorised as F^T F, F (rank, n), by Cholesky
// with pivots. Small pivots are summed again from S in twice the precision, so that K's own rounding is all that is left to
// decide the rank (noise.h). Scaling F's columns makes it a factor of K, or of the cosines. Jacobi rotations of pairs of
// rows (one-sided: Hestenes, de Rijk) then make the rows orthogonal: r_k = sigma_k u_k with K = sum_k sigma_k^2 u_k u_k^T.
// Squaring nothing, this keeps the relative accuracy of small sigma_k that an eigensolver of K loses where norms differ much
// (Demmel, Veselic 1992).
#pragma once

#include "cosines.h"

namespace mtlkernels {

constexpr double kSmallPivot = 1e-4;  // a pivot below this share of its diagonal is summed again
constexpr int kJacobiSweeps = 40;
constexpr double kJacobiShare = 2e-16;  // times n, of the terms of a product of rows: what rounding leaves of zero

MTLKERNELS_HOST_DEVICE inline int half_exponent(double square) { return std::ilogb(square) >> 1; }

// S of the tasks that take part; norm: sqrt(K_ii) as shares of the largest; unit: sqrt(S_ii).
template <class Lanes>
MTLKERNELS_HOST_DEVICE void scaled_gram(const Lanes& lanes, const double* K, int tasks, const int* active, int n, double* S,
                                        double* norm, double* unit) {
  double largest = 0;
  for (int a = 0; a < n; ++a) largest = std::fmax(largest, std::sqrt(K[active[a] * tasks + active[a]]));
  for (int r = lanes.lane; r < n; r += lanes.lanes) {
    const double square = K[active[r] * tasks + active[r]];
    const int half = half_exponent(square);
    for (int s = 0; s < n; ++s)
      S[r * n + s] = std::ldexp(K[active[r] * tasks + active[s]], -half - half_exponent(K[active[s] * tasks + active[s]]));
    norm[r] = std::sqrt(square) / largest;
    unit[r] = std::sqrt(S[r * n + r]);
  }
  lanes.sync();
}

// A sum of products in twice the precision.
struct ExactSum {
  double high = 0, low = 0;

  MTLKERNELS_HOST_DEVICE void add(double a, double b) {
    const double product = a * b, sum = high + product, shift = sum - high;
    low += std::fma(a, b, -product) + ((high - (sum - shift)) + (product - shift));
    high = sum;
  }
};

// The square of the part of gradient `pivot` outside the span of the `count` chosen ones, and K's noise in it.
struct Outside {
  double square, noise;

  // x: (count) memory, the coefficients of the span.
  MTLKERNELS_HOST_DEVICE Outside(const double* S, const double* F, int n, const double* order, int count, int pivot,
                                 double* x) {
    double size = std::sqrt(S[pivot * n + pivot]);
    for (int m = count - 1; m >= 0; --m) {
      double sum = F[m * n + pivot];
      for (int k = m + 1; k < count; ++k) sum -= F[m * n + static_cast<int>(order[k])] * x[k];
      const int chosen = static_cast<int>(order[m]);
      x[m] = sum / F[m * n + chosen];
      size += std::fabs(x[m]) * std::sqrt(S[chosen * n + chosen]);
    }
    const auto product = [&](int i) {  // with gradient i
      ExactSum sum;
      sum.add(S[pivot * n + i], 1.0);
      for (int k = 0; k < count; ++k) sum.add(S[static_cast<int>(order[k]) * n + i], -x[k]);
      return sum.high + sum.low;
    };
    square = product(pivot);
    for (int k = 0; k < count; ++k) square -= x[k] * product(static_cast<int>(order[k]));
    noise = kNoise * size * size;
  }
};

struct Rank {
  int rank;
  bool doubtful;  // some gradient may be dependent or not
};

constexpr int64_t factor_doubles(int64_t n) { return 3 * n + 2; }

// S: (n, n). F: (n, n), the first rank rows are filled. Pivots are the largest of S's cosines with columns scaled by
// `scale`, or of the cosines where it is null: rows then come in the order of their lengths, with exact zeros where
// rotations would otherwise have to cancel what a long gradient adds to a short row. memory: factor_doubles(n).
template <class Lanes>
MTLKERNELS_HOST_DEVICE Rank factorise(const Lanes& lanes, const double* S, const double* scale, int n, double* F,
                                      double* memory) {
  double *rest = memory, *order = rest + n, *x = order + n, *found = x + n;  // rest: 0 for a pivot and a dependent one
  for (int i = lanes.lane; i < n; i += lanes.lanes) rest[i] = S[i * n + i];
  lanes.sync();
  Rank answer{0, false};
  for (;;) {
    const int k = answer.rank;
    int pivot = -1;
    double longest = 0;
    for (int i = 0; i < n; ++i) {
      const double length = std::sqrt(rest[i] / S[i * n + i]) * (scale ? scale[i] : 1.0);
      if (length > longest) longest = length, pivot = i;
    }
    if (pivot < 0) return answer;
    double square = rest[pivot];
    if (square < kSmallPivot * S[pivot * n + pivot]) {
      if (lanes.lane == 0) {
        const Outside outside(S, F, n, order, k, pivot, x);
        found[0] = outside.square;
        found[1] = outside.noise;
      }
      lanes.sync();
      square = found[0];
      const double noise = found[1];
      lanes.sync();
      if (!(square > noise)) {
        answer.doubtful = answer.doubtful || std::fabs(square) > kClear * noise;
        if (lanes.lane == 0) rest[pivot] = 0;
        lanes.sync();
        continue;
      }
    }
    const double root = std::sqrt(square);
    double* row = F + k * n;
    for (int i = lanes.lane; i < n; i += lanes.lanes) row[i] = S[pivot * n + i];
    for (int m = 0; m < k; ++m) {
      const double part = F[m * n + pivot];
      for (int i = lanes.lane; i < n; i += lanes.lanes) row[i] -= part * F[m * n + i];
    }
    lanes.sync();
    for (int i = lanes.lane; i < n; i += lanes.lanes) {
      const bool done = rest[i] == 0;  // an earlier pivot, as the factor is triangular, or in the span of those
      row[i] = done ? 0.0 : i == pivot ? root : row[i] / root;
      rest[i] = done || i == pivot ? 0.0 : std::fmax(rest[i] - row[i] * row[i], 1e-300);
    }
    if (lanes.lane == 0) order[k] = pivot;
    ++answer.rank;
    lanes.sync();
  }
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
