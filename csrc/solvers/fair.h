// (K w)_i = (p_i / w_i)^(1/alpha), w > 0: NashMTL (alpha = 1, p = 1), FairGrad (p = 1), PIVRG (alpha = 2).
//
// The condition of a minimum of 1/2 w^T K w - sum_i p_i^(1/alpha) phi(w_i), phi' = w^(-1/alpha). With n_i = ||g_i||,
// C the cosines, y_i = n_i w_i and log q_i = log p_i + (1 - alpha) log n_i it reads
//     C y = u,   alpha log u_i + log y_i = log q_i,
// so norms enter as logarithms only. Newton's method on both at once, with steps that cannot leave y, u > 0 and
// cross many decades at once where a logarithm is the straighter function. There is a solution
// unless zero lies in the convex hull of the gradients; C then gets a ridge, and the status says kNoSolution. It gets one
// too, and the status says kIllConditioned, where there is a solution by rounding only, or none within the bound on work.
#pragma once

#include "../common/solver.h"
#include "../linalg/active_set.h"
#include "../linalg/cosines.h"

namespace mtlkernels {

constexpr int kFairRounds = 300;
constexpr double kFairResidual = 1e-13;  // of u_i
constexpr double kFairRounding = 2e-15;  // of the terms that (C y)_i is the sum of
// ||sum_i y_i u_i||^2 below this share of (sum_i y_i)^2 is K's noise, and no direction.
constexpr double kFairNothing = 4 * kNoise;
// Equations without a solution are solved with this on the diagonal: weights of kFairRidge^(-alpha / (1 + alpha)) at most.
constexpr double kFairRidge = 1e-6;
// The first rounds take u = C y where that loses no more than half of u; later ones leave u to Newton's method.
constexpr int kFairDirectRounds = 3;
constexpr double kFairFelt = 0.1;  // y_i below this share of u_i is hardly felt in C y: it may grow as its logarithm says
constexpr double kFairFloor = 1e-290;  // the smallest y_i; one that ought to be smaller has no weight

enum class FairEnd { kSolved, kBound, kUnsolvable };

struct FairProblem {
  double* C;            // (n, n) cosines; the diagonal is written to and restored
  const double* log_q;  // (n)
  double alpha;
  double ridge;
  int n;
  const int* index;  // 0 .. n - 1
};

struct FairMemory {
  double *L, *y, *u, *Cy, *fair_u, *step, *open;  // (n, n), then (n) each

  MTLKERNELS_HOST_DEVICE FairMemory(double* memory, int n)
      : L(memory), y(L + n * n), u(y + n), Cy(u + n), fair_u(Cy + n), step(fair_u + n), open(step + n) {}
};

// x + change for x > 0. Where that loses more than half, x shrinks exponentially instead, by e^-shrink at most; growth
// is exponential as far as `reach`.
MTLKERNELS_HOST_DEVICE inline double moved(double x, double change, double shrink, double reach) {
  const double share = change / x;
  if (!std::isfinite(share)) return x;
  const double power = x * std::exp(std::fmin(std::fmax(share, -shrink), 600.0));
  const double next = share < -0.5 ? power : std::fmax(x + change, std::fmin(power, reach));
  return std::fmin(std::fmax(next, kFairFloor), 1 / kFairFloor);
}

// The u_i that the second equation asks for.
MTLKERNELS_HOST_DEVICE inline double fair_value(double log_q, double y, double alpha) {
  return std::exp(std::fmin(std::fmax((log_q - std::log(y)) / alpha, -650.0), 600.0));
}

template <class Lanes>
MTLKERNELS_HOST_DEVICE void set_diagonal(const Lanes& lanes, const FairProblem& problem, const double* extra) {
  for (int i = lanes.lane; i < problem.n; i += lanes.lanes)
    problem.C[i * problem.n + i] = 1 + problem.ridge + (extra ? extra[i] : 0.0);
  lanes.sync();
}

// Cy, the u that y asks for, and whether each task's equation is still open.
template <class Lanes>
MTLKERNELS_HOST_DEVICE void fair_residuals(const Lanes& lanes, const FairProblem& problem, const FairMemory& m) {
  for (int i = lanes.lane; i < problem.n; i += lanes.lanes) {
    const double* row = problem.C + i * problem.n;
    double sum = 0, size = 0;
    for (int j = 0; j < problem.n; ++j) {
      const double term = row[j] * m.y[j];
      sum += term;
      size += std::fabs(term);
    }
    const double wanted = fair_value(problem.log_q[i], m.y[i], problem.alpha);
    const double gap = std::fabs(sum - wanted);
    const bool vanishes = m.y[i] <= kFairFloor && sum > wanted;
    m.Cy[i] = sum;
    m.fair_u[i] = wanted;
    const bool closed = gap <= kFairResidual * wanted || gap <= kFairRounding * (size + wanted) || vanishes;
    m.open[i] = closed ? 0.0 : 1.0;
  }
  lanes.sync();
}

// The solution for C = 1, at the length that is best along its ray.
template <class Lanes>
MTLKERNELS_HOST_DEVICE void fair_start(const Lanes& lanes, const FairProblem& problem, const FairMemory& m) {
  const double alpha = problem.alpha;
  for (int i = lanes.lane; i < problem.n; i += lanes.lanes) m.y[i] = std::exp(problem.log_q[i] / (1 + alpha));
  lanes.sync();
  fair_residuals(lanes, problem, m);
  double energy = 0, terms = 0, gain = 0;
  for (int i = 0; i < problem.n; ++i) {
    energy += m.y[i] * m.Cy[i];
    terms += m.y[i];
    gain += m.y[i] * m.fair_u[i];
  }
  const double length = std::pow(gain / std::fmax(energy, kFairNothing * terms * terms), alpha / (1 + alpha));
  lanes.sync();
  for (int i = lanes.lane; i < problem.n; i += lanes.lanes) {
    m.y[i] *= length;
    m.u[i] = m.fair_u[i] * std::pow(length, -1 / alpha);
  }
  lanes.sync();
}

template <class Lanes>
MTLKERNELS_HOST_DEVICE void fair_step(const Lanes& lanes, const FairProblem& problem, bool direct, const FairMemory& m) {
  const int n = problem.n;
  double* curvature = m.open;
  for (int i = lanes.lane; i < n; i += lanes.lanes) {
    if (direct && m.Cy[i] > 0.5 * m.u[i]) m.u[i] = m.Cy[i];
    const double share = std::log(m.fair_u[i] / m.u[i]);
    curvature[i] = m.u[i] / (problem.alpha * m.y[i]);
    m.step[i] = m.u[i] * share - (m.Cy[i] - m.u[i]);
  }
  lanes.sync();
  set_diagonal(lanes, problem, curvature);
  cholesky(lanes, problem.C, n, problem.index, n, m.L);
  if (lanes.lane == 0) cholesky_solve(m.L, n, n, m.step);
  set_diagonal(lanes, problem, nullptr);
  for (int i = lanes.lane; i < n; i += lanes.lanes) {
    double change = m.Cy[i] - m.u[i];
    for (int j = 0; j < n; ++j) change += problem.C[i * n + j] * m.step[j];
    m.y[i] = moved(m.y[i], m.step[i], 700.0, kFairFelt * m.u[i]);
    m.u[i] = moved(m.u[i], change, 2.0, 0.0);
  }
  lanes.sync();
}

template <class Lanes>
MTLKERNELS_HOST_DEVICE FairEnd fair_newton(const Lanes& lanes, const FairProblem& problem, const FairMemory& m) {
  set_diagonal(lanes, problem, nullptr);
  fair_start(lanes, problem, m);
  for (int round = 0; round < kFairRounds; ++round) {
    fair_residuals(lanes, problem, m);
    double energy = 0, terms = 0, open = 0;
    for (int i = 0; i < problem.n; ++i) {
      energy += m.y[i] * m.Cy[i];
      terms += m.y[i];
      open += m.open[i];
    }
    lanes.sync();
    if (problem.ridge == 0 && energy <= kFairNothing * terms * terms) return FairEnd::kUnsolvable;
    if (open == 0) return FairEnd::kSolved;
    fair_step(lanes, problem, round < kFairDirectRounds, m);
  }
  return FairEnd::kBound;
}

// How far noise of K moves the direction, as a share of its length: (C + H) dy = -dC y with H_i = u_i / (alpha y_i), so by
// kNoise |y| sqrt(sum_ij |(C + H)^-1|_ij), and by half of kNoise |y|^2 where the length counts.
template <class Lanes>
MTLKERNELS_HOST_DEVICE double fair_moved(const Lanes& lanes, const FairProblem& problem, const FairMemory& m) {
  double terms = 0, square = 0, sum = 0;
  for (int r = 0; r < problem.n; ++r) {
    terms += m.y[r];
    square += m.y[r] * m.Cy[r];
    sum += 1 / std::sqrt(1e-30 + m.fair_u[r] / (problem.alpha * m.y[r]));  // (C + H)^-1 <= H^-1
  }
  const double ratio = terms / std::sqrt(std::fmax(square, 0.0)), length = 0.5 * kNoise * ratio * ratio;
  const double most = kNoise * ratio * sum + length;
  lanes.sync();
  if (most <= kTolerance) return most;
  for (int r = lanes.lane; r < problem.n; r += lanes.lanes) m.open[r] = m.fair_u[r] / (problem.alpha * m.y[r]);
  lanes.sync();
  set_diagonal(lanes, problem, m.open);
  const double inverse = inverse_roots(lanes, problem.C, problem.n, problem.index, problem.n, m.L, m.step);
  set_diagonal(lanes, problem, nullptr);
  return std::fmin(most, kNoise * ratio * inverse + length);
}

// p: (T), or null for ones; a p that is not positive and finite makes all weights NaN. max_norm: the direction is
// shortened to it where it is longer.
struct Fair : Solver {
  static constexpr const char* kName = "fairgrad";
  static constexpr const char* kArguments[] = {"alpha", "importance", "max_norm"};
  static constexpr int64_t doubles(int64_t tasks) { return 2 * tasks * tasks + 8 * tasks; }
  static constexpr int64_t ints(int64_t tasks) { return 2 * tasks; }

  template <class Lanes>
  MTLKERNELS_HOST_DEVICE static void solve(const Lanes& lanes, const Problem& problem, double alpha, OptionalNumbers p,
                                           double max_norm) {
    const auto [K, tasks, weights, status, workspace, ints] = problem;
    int *active = ints, *index = ints + tasks;
    const int n = screen(lanes, K, tasks, status, active);
    bool valid = n >= 0;
    for (int a = 0; p && a < n; ++a) valid = valid && p[active[a]] > 0 && std::isfinite(p[active[a]]);
    fill(lanes, weights, tasks, valid ? 0.0 : NAN);
    if (n <= 0 || !valid) return;

    double *C = workspace, *norm = C + n * n, *log_q = norm + n;
    const FairMemory m(log_q + n, n);
    const double largest = cosines(lanes, K, tasks, active, n, C, norm);
    for (int r = lanes.lane; r < n; r += lanes.lanes) {
      log_q[r] = (p ? std::log(p[active[r]]) : 0.0) + (1 - alpha) * std::log(norm[r]);
      index[r] = r;
    }
    lanes.sync();

    FairProblem equations{C, log_q, alpha, 0.0, n, index};
    FairEnd end = fair_newton(lanes, equations, m);
    const bool known = end == FairEnd::kSolved && fair_moved(lanes, equations, m) <= kTolerance;
    if (!known) {
      flag_all(lanes, status, tasks, end == FairEnd::kUnsolvable ? kNoSolution : kIllConditioned);
      equations.ridge = end == FairEnd::kUnsolvable ? kFairRidge : kRidge;
      end = fair_newton(lanes, equations, m);
    }
    if (end == FairEnd::kBound) flag_all(lanes, status, tasks, kNoConvergence);

    double energy = 0;
    for (int r = 0; r < n; ++r) energy += m.y[r] * (m.Cy[r] - equations.ridge * m.y[r]);
    const double length = std::sqrt(std::fmax(energy, 0.0)) * std::pow(largest, (1 - alpha) / (1 + alpha));
    const double factor = std::pow(largest, -2 * alpha / (1 + alpha)) * (length > max_norm ? max_norm / length : 1.0);
    for (int r = lanes.lane; r < n; r += lanes.lanes) weights[active[r]] = factor * m.y[r] / norm[r];
    lanes.sync();
  }
};

}  // namespace mtlkernels
