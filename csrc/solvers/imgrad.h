// IMGrad (arXiv 2503.08006): CAGrad's ball about the mean g0, d = g0 + k g_w / ||g_w|| with k = c ||g0||, where w weighs
// agreement with the mean against a short g_w by the angle between g0 and MGDA's direction, x = cos(g0, g_MGDA):
//     paper:  min (1 - x) b^T w + x k w^T K w             over the simplex, b = K 1 / T,
//     code:   min (1.5 - x) b^T w + x k sqrt(w^T K w).
// The paper's is not homogeneous in the gradients: a common factor changes the balance of its two terms. MGDA's own
// conditions give x > 0; where its direction is zero there is no angle, and the answer is CAGrad's.
#pragma once

#include "mgda.h"

namespace mtlkernels {

enum class IMGradForm : int64_t { kPaper = 0, kCode = 1 };

template <class Lanes>
MTLKERNELS_HOST_DEVICE Pull imgrad_pull(const Lanes& lanes, const double* A, const double* b, double length, double c,
                                        double unit, IMGradForm form, int n, double* w, double* v,
                                        const ActiveSetMemory& memory) {
  const double k = c * length;
  int count = 0;
  bool converged = nearest_to_zero(lanes, A, n, w, count, memory);
  double square = quadratic(lanes, A, w, n, memory.Kx);
  if (is_stationary(lanes, A, w, n, square)) {
    Pull pull = cagrad_pull(lanes, SimplexRoot{A, b, k, n}, w, v, memory);
    pull.stationary = true;
    return pull;
  }
  double dot = 0, terms = 0;
  for (int i = 0; i < n; ++i) terms += w[i] * std::sqrt(A[i * n + i]);
  const bool doubtful = !stands_out(std::sqrt(square), terms);  // so are the angle, and that it is no stationary point
  for (int i = 0; i < n; ++i) dot += b[i] * w[i];
  const double cosine = std::fmin(dot / (length * std::sqrt(square)), 1.0);
  lanes.sync();
  if (form == IMGradForm::kPaper) {
    converged = active_set(lanes, SimplexSquare{A, b, 1 - cosine, cosine * k * unit, n}, w, count, memory) && converged;
  } else {
    converged = active_set(lanes, SimplexRoot{A, b, cosine / (1.5 - cosine) * k, n}, w, count, memory) && converged;
  }
  square = quadratic(lanes, A, w, n, memory.Kx);
  return {k / std::sqrt(square), w, false, converged, doubtful};
}

template <class Lanes>
MTLKERNELS_HOST_DEVICE void imgrad(const Lanes& lanes, const double* K, int tasks, double c, IMGradForm form,
                                   Rescale rescale, double* weights, int64_t* status, double* workspace, int* ints) {
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
    if (pull.doubtful) flag_all(lanes, status, tasks, kIllConditioned);
    if (hangs_on_rounding(lanes, pull, A, c * length, n)) {
      pull = imgrad_pull(lanes, A, b, length, c, unit, form, n, w, v, memory);
      flag_all(lanes, status, tasks, kIllConditioned);
    }
  }
  pulled_mean(lanes, pull, c, rescale, false, active, n, tasks, weights, status);
}

}  // namespace mtlkernels
