// IMGrad (arXiv 2503.08006): CAGrad's ball about the mean g0, d = g0 + k g_w / ||g_w|| with k = c ||g0||, where w weighs
// agreement with the mean against a short g_w by the angle between g0 and MGDA's direction, x = cos(g0, g_MGDA):
//     paper:  min (1 - x) b^T w + x k w^T K w             over the simplex, b = K 1 / T,
//     code:   min (1.5 - x) b^T w + x k sqrt(w^T K w).
// The paper's is not homogeneous in the gradients: a common factor changes the balance of its two terms. MGDA's own
// conditions give x > 0; where its direction is zero there is no angle, and the answer is CAGrad's.
#pragma once

#include "../common/solver.h"
#include "mgda.h"

namespace mtlkernels {

enum class IMGradForm : int64_t { kPaper = 0, kCode = 1, kLast = kCode };

template <class Lanes>
MTLKERNELS_HOST_DEVICE Pull imgrad_pull(const Lanes& lanes, const double* A, const double* b, double length, double c,
                                        double unit, IMGradForm form, int n, double* w, double* v,
                                        const ActiveSetMemory& memory) {
  const double k = c * length, mean = mean_norm(A, n);
  int count = 0;
  bool converged = nearest_to_zero(lanes, A, n, w, count, memory);
  double square = quadratic(lanes, A, w, n, memory.Kx);
  if (is_stationary(lanes, A, w, n, square)) {
    Pull pull = cagrad_pull(lanes, SimplexRoot{A, b, k, n}, mean, w, v, memory);
    pull.stationary = true;
    return pull;
  }
  double dot = 0;
  for (int i = 0; i < n; ++i) dot += b[i] * w[i];
  const double nearest = std::sqrt(square), terms = lengths(A, w, n) / nearest, ratio = mean / length;
  const double cosine = std::fmin(dot / (length * nearest), 1.0);
  lanes.sync();
  // What noise moves of the cosine: MGDA's direction, the product and the two lengths.
  const double turned = kNoise * terms * spread(lanes, A, n, count, memory).tangent +
                        kNoise * (ratio * terms + 0.5 * ratio * ratio + 0.5 * terms * terms);
  double moved = 0;
  if (form == IMGradForm::kPaper) {
    const double linear = 1 - cosine, curvature = cosine * k * unit, balance = linear / (2 * curvature);
    converged = active_set(lanes, SimplexSquare{A, b, linear, curvature, n}, w, count, memory) && converged;
    square = quadratic(lanes, A, w, n, memory.Kx);
    const double all = lengths(A, w, n), sum = spread(lanes, A, n, count, memory).tangent;
    moved = (kNoise * (balance * mean + all) * sum +
             (count > 1 ? (turned / (2 * curvature) + balance * turned / cosine) * length : 0.0)) /
            std::sqrt(square);
  } else {
    const SimplexRoot dual{A, b, cosine / (1.5 - cosine) * k, n};
    converged = active_set(lanes, dual, w, count, memory) && converged;
    square = quadratic(lanes, A, w, n, memory.Kx);
    moved = moved_root(lanes, dual, w, std::sqrt(square), mean, count, memory);
    const double scaled = spread(lanes, A, n, count, memory).root * std::sqrt(square);
    if (count > 1) moved += 1.5 / (1.5 - cosine) * turned / cosine * std::sqrt(std::fmax(scaled * scaled - 1, 0.0));
  }
  return {k / std::sqrt(square), w, false, converged, moved};
}

struct IMGrad : CAGrad {  // its memory and its bound on c
  static constexpr const char* kName = "imgrad";
  static constexpr const char* kArguments[] = {"c", "form", "rescale"};

  template <class Lanes>
  MTLKERNELS_HOST_DEVICE static void solve(const Lanes& lanes, const Problem& problem, double c, IMGradForm form,
                                           Rescale rescale) {
    const auto [K, tasks, weights, status, workspace, ints] = problem;
    int* active = ints;
    const int n = screen(lanes, K, tasks, status, active);
    fill(lanes, weights, tasks, n < 0 ? NAN : 0.0);
    if (n <= 0) return;
    double* A = workspace;
    double *b = A + tasks * tasks, *w = b + tasks, *v = w + tasks;
    const ActiveSetMemory memory(v + tasks, ints + tasks, n);
    const double unit = std::sqrt(normalise(lanes, K, tasks, active, n, A, b));
    const double length = mean_length(b, n);
    Pull pull{0.0, w, false, true};
    if (c * length > 0) {
      pull = imgrad_pull(lanes, A, b, length, c, unit, form, n, w, v, memory);
      if (!is_known(lanes, pull, A, c * length, mean_norm(A, n), length, n, memory.target, memory.Kx)) {
        add_ridge_to(lanes, A, n);
        pull = imgrad_pull(lanes, A, b, length, c, unit, form, n, w, v, memory);
        flag_all(lanes, status, tasks, kIllConditioned);
      }
    }
    pulled_mean(lanes, pull, c, rescale, false, active, n, tasks, weights, status);
  }
};

}  // namespace mtlkernels
