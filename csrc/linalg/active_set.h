// The active-set walk shared by the small convex problems over x >= 0.
//
// A problem is minimised over the span of a support by a closed form. From a feasible point the walk goes towards that
// minimiser, stops at the first coordinate that would become negative and drops it; at the minimiser itself it adds the
// coordinate that violates its optimality condition most. Every step lowers a convex objective, so no support comes
// back and the walk ends; in floating point it ends as well where an added coordinate cannot move.
#pragma once

#include "cholesky.h"
#include "screen.h"

namespace mtlkernels {

// Memory of one walk over n coordinates, in doubles and in ints.
constexpr int64_t active_set_doubles(int64_t n) { return n * n + 5 * n; }
constexpr int64_t active_set_ints(int64_t n) { return n; }

struct ActiveSetMemory {
  double* L;       // (n, n) factor
  double* target;  // (n) on the support
  double* y;       // (n) solves
  double* z;       // (n)
  double* Kx;      // (n)
  double* slack;   // (n)
  int* support;    // (n)

  MTLKERNELS_HOST_DEVICE ActiveSetMemory(double* memory, int* ints, int n)
      : L(memory), target(L + n * n), y(target + n), z(y + n), Kx(z + n), slack(Kx + n), support(ints) {}
};

// Kx = K x, a row a lane.
template <class Lanes>
MTLKERNELS_HOST_DEVICE void multiply(const Lanes& lanes, const double* K, const double* x, int n, double* Kx) {
  for (int i = lanes.lane; i < n; i += lanes.lanes) {
    double sum = 0;
    for (int j = 0; j < n; ++j) sum += K[i * n + j] * x[j];
    Kx[i] = sum;
  }
  lanes.sync();
}

// Moves x from where it is towards the minimiser over its support, dropping coordinates, until it is there.
// `added` is the coordinate that joined at zero, or -1; `factored` counts the first coordinates of the support whose
// rows of the factor hold. False where it could not move: x is then as good as it gets.
template <class Lanes, class Problem>
MTLKERNELS_HOST_DEVICE bool descend(const Lanes& lanes, const Problem& problem, double* x, int& count, int added,
                                    int& factored, const ActiveSetMemory& memory) {
  int* support = memory.support;
  while (count > 0) {
    cholesky(lanes, problem.K, problem.n, support, count, memory.L, factored);
    factored = count;
    const bool bounded = problem.minimise(lanes, support, count, memory);  // fills target: a point, or else a direction
    double step = bounded ? 1.0 : INFINITY;
    int blocking = -1;
    for (int s = 0; s < count; ++s) {
      const double change = bounded ? memory.target[s] - x[support[s]] : memory.target[s];
      const double end = bounded ? memory.target[s] : change;
      if (end < 0 && -x[support[s]] / change < step) {
        step = -x[support[s]] / change;
        blocking = s;
      }
    }
    if (blocking < 0 && !bounded) return false;
    const bool stuck = blocking >= 0 && support[blocking] == added && step == 0;
    lanes.sync();
    if (lanes.lane == 0) {
      int kept = 0, unmoved = 0;
      for (int s = 0; s < count; ++s) {
        const int i = support[s];
        const double change = bounded ? memory.target[s] - x[i] : memory.target[s];
        x[i] = blocking < 0 ? memory.target[s] : s == blocking ? 0.0 : x[i] + step * change;
        if (x[i] > 0) {
          unmoved += kept == s;
          support[kept++] = i;
        } else {
          x[i] = 0.0;
        }
      }
      memory.y[0] = kept;
      memory.z[0] = unmoved;
    }
    lanes.sync();
    count = static_cast<int>(memory.y[0]);
    factored = static_cast<int>(memory.z[0]);
    lanes.sync();
    if (stuck) return false;
    if (blocking < 0) return true;
  }
  return true;
}

// x: (n) a feasible start whose support is listed in memory.support[0 .. count). False where the bound on work was met.
template <class Lanes, class Problem>
MTLKERNELS_HOST_DEVICE bool active_set(const Lanes& lanes, const Problem& problem, double* x, int& count,
                                       const ActiveSetMemory& memory) {
  int added = -1, factored = 0;
  for (int round = 0; round < 8 * problem.n + 16; ++round) {
    if (!descend(lanes, problem, x, count, added, factored, memory)) return true;
    added = problem.worst_violation(lanes, x, memory);
    lanes.sync();  // whoever comes next writes what this has read
    if (added < 0) return true;
    if (lanes.lane == 0) memory.support[count] = added;
    ++count;
    lanes.sync();
  }
  return false;
}

// How far noise of K moves the answer over a support. Where K_S x = b, |error of b_i| <= kNoise n_i t moves G_S^T x by
// kNoise t sqrt(sum_ij |C_S^-1|_ij) at most, C_S the support's cosines; that root is no more than the sum of the
// sqrt((C_S^-1)_ii) = 1 / sin(angle between gradient i and the span of the others).
struct Spread {
  double sum;      // of the 1 / sin
  double tangent;  // the same for changes of x whose sum is zero: of K_S^-1 - y y^T / s, y = K_S^-1 1, s = 1^T y
  double root;     // sqrt(s)
};

// Factorises A = K over `index`, and gives roots[i] = sqrt((A^-1)_ii). The inverse factor goes above L's diagonal. Returns
// the sum of the roots.
template <class Lanes>
MTLKERNELS_HOST_DEVICE double inverse_roots(const Lanes& lanes, const double* K, int n, const int* index, int count,
                                            double* L, double* roots) {
  cholesky(lanes, K, n, index, count, L);
  for (int i = lanes.lane; i < count; i += lanes.lanes) {
    const double first = 1 / L[i * n + i];
    double square = first * first;
    for (int r = i + 1; r < count; ++r) {
      double sum = L[r * n + i] * first;
      for (int k = i + 1; k < r; ++k) sum += L[r * n + k] * L[i * n + k];
      const double entry = -sum / L[r * n + r];
      L[i * n + r] = entry;
      square += entry * entry;
    }
    roots[i] = std::sqrt(square);
  }
  lanes.sync();
  double sum = 0;
  for (int i = 0; i < count; ++i) sum += roots[i];
  lanes.sync();
  return sum;
}

template <class Lanes>
MTLKERNELS_HOST_DEVICE Spread spread(const Lanes& lanes, const double* K, int n, int count, const ActiveSetMemory& memory) {
  const int* support = memory.support;
  double *roots = memory.slack, *y = memory.y;
  inverse_roots(lanes, K, n, support, count, memory.L, roots);
  if (count == 1) {  // nothing to change where the sum stays
    lanes.sync();
    const double norm = std::sqrt(K[support[0] * n + support[0]]);
    return {1.0, 0.0, 1 / norm};
  }
  fill(lanes, y, count, 1.0);
  if (lanes.lane == 0) cholesky_solve(memory.L, n, count, y);
  lanes.sync();
  double s = 0;
  for (int i = 0; i < count; ++i) s += y[i];
  Spread found{0, 0, std::sqrt(s)};
  for (int i = 0; i < count; ++i) {
    const double norm = std::sqrt(K[support[i] * n + support[i]]);
    found.sum += norm * roots[i];
    found.tangent += norm * std::sqrt(std::fmax(roots[i] * roots[i] - y[i] * y[i] / s, 0.0));
  }
  lanes.sync();
  return found;
}

// A condition counts as violated beyond this share of the terms it is the difference of.
constexpr double kViolation = 1e-13;

}  // namespace mtlkernels
