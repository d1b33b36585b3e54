// Solves with a symmetric positive semi-definite sub-matrix of a small K, for the active-set solvers.
#pragma once

#include "../common/lanes.h"

namespace mtlkernels {

// A pivot that rounding has eaten is taken as this share of its diagonal. The solution then runs far along the null
// vector, which is where an active-set step has to go: to the boundary.
constexpr double kPivotFloor = 4e-15;

// L: lower triangle of the Cholesky factor of A = K[index, index], n x n with leading dimension ld. Diagonal scaling
// commutes with the factorisation, so K may be badly scaled. The first `kept` rows of L hold already.
template <class Lanes>
MTLKERNELS_HOST_DEVICE void cholesky(const Lanes& lanes, const double* K, int ld, const int* index, int n, double* L,
                                     int kept = 0) {
  for (int c = 0; c < n; ++c) {
    const int first = c > kept ? c : kept;
    for (int r = first + lanes.lane; r < n; r += lanes.lanes) {
      double sum = K[index[r] * ld + index[c]];
      for (int k = 0; k < c; ++k) sum -= L[r * ld + k] * L[c * ld + k];
      L[r * ld + c] = sum;
    }
    lanes.sync();
    const double diagonal = K[index[c] * ld + index[c]];
    const double pivot = L[c * ld + c];
    const double root = c < kept ? pivot : std::sqrt(pivot > kPivotFloor * diagonal ? pivot : kPivotFloor * diagonal);
    lanes.sync();
    const bool eaten = root * root <= kPivotFloor * diagonal * (1 + 1e-9);
    for (int r = first + lanes.lane; r < n; r += lanes.lanes) {
      double value = r == c ? root : L[r * ld + c] / root;
      if (eaten && r > c) {  // rounding over a floored pivot: beyond what is left of row r it would grow without bound
        double room = K[index[r] * ld + index[r]];
        const double least = kPivotFloor * room;
        for (int k = 0; k < c; ++k) room -= L[r * ld + k] * L[r * ld + k];
        const double limit = std::sqrt(room > least ? room : least);
        value = std::fmax(std::fmin(value, limit), -limit);
      }
      L[r * ld + c] = value;
    }
    lanes.sync();
  }
}

// x <- A^-1 x, by every lane on its own memory or by one lane: n is small and the recurrences are serial.
MTLKERNELS_HOST_DEVICE inline void cholesky_solve(const double* L, int ld, int n, double* x) {
  for (int r = 0; r < n; ++r) {
    double sum = x[r];
    for (int k = 0; k < r; ++k) sum -= L[r * ld + k] * x[k];
    x[r] = sum / L[r * ld + r];
  }
  for (int r = n - 1; r >= 0; --r) {
    double sum = x[r];
    for (int k = r + 1; k < n; ++k) sum -= L[k * ld + r] * x[k];
    x[r] = sum / L[r * ld + r];
  }
}

}  // namespace mtlkernels
