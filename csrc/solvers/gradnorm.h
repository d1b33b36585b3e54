// GradNorm (arXiv 1711.02257) from the norms alone: one step on sum_i |w_i n_i - m r_i^alpha| / m in w, where m is the
// mean of the w_i n_i and r_i = (L_i / L_i(0)) over its mean; m r_i^alpha is held fixed. Then the w_i sum to T again.
// Dividing by m makes the step the same at every scale of the gradients.
#pragma once

#include "../common/solver.h"
#include "../linalg/screen.h"

namespace mtlkernels {

// The loss is positive and finite.
MTLKERNELS_HOST_DEVICE inline bool usable(double loss) { return loss > 0 && std::isfinite(loss); }

// weights: those of this step, from w. next: (T) the next step's. start: (T) first losses, NaN before there is one.
// A step with a loss that is not usable or a gradient that is not finite leaves w as it is. ratio: (T) memory.
struct GradNorm : Solver {
  static constexpr const char* kName = "gradnorm";
  static constexpr const char* kArguments[] = {"losses", "state", "start", "alpha", "rate"};
  static constexpr int64_t doubles(int64_t tasks) { return tasks; }

  template <class Lanes>
  MTLKERNELS_HOST_DEVICE static void solve(const Lanes& lanes, const Problem& problem, TaskNumbers losses, TaskNumbers w,
                                           TaskNumbers start, double alpha, double rate, NextTaskNumbers next,
                                           NextTaskNumbers next_start) {
    const auto [K, tasks, weights, status, ratio, active] = problem;
    const int n = screen(lanes, K, tasks, status, active);
    fill(lanes, weights, tasks, n < 0 ? NAN : 0.0);
    bool good = n > 0;
    for (int i = 0; i < tasks; ++i) good = good && usable(losses[i]);
    for (int i = lanes.lane; i < tasks; i += lanes.lanes) {
      next[i] = w[i];
      next_start[i] = std::isnan(start[i]) && usable(losses[i]) ? losses[i] : start[i];
      ratio[i] = losses[i] / next_start[i];
      if (!usable(losses[i])) status[i] |= kInvalidLoss;
    }
    lanes.sync();
    if (n <= 0) return;

    double total = 0, mean = 0, mean_ratio = 0;
    for (int a = 0; a < n; ++a) {
      const int i = active[a];
      total += w[i];
      mean += w[i] * std::sqrt(K[i * tasks + i]) / n;
      mean_ratio += ratio[i] / n;
    }
    for (int a = lanes.lane; a < n; a += lanes.lanes) weights[active[a]] = total > 0 ? n * w[active[a]] / total : 1.0;
    lanes.sync();
    if (!good || !(mean > 0)) return;

    for (int a = lanes.lane; a < n; a += lanes.lanes) {
      const int i = active[a];
      const double norm = std::sqrt(K[i * tasks + i]) / mean;
      const double excess = w[i] * norm - std::pow(ratio[i] / mean_ratio, alpha);
      const double moved = w[i] - rate * norm * ((excess > 0) - (excess < 0));
      next[i] = moved > 0 ? moved : 0.0;
    }
    lanes.sync();
    double sum = 0;
    for (int i = 0; i < tasks; ++i) sum += next[i];
    lanes.sync();
    for (int i = lanes.lane; i < tasks; i += lanes.lanes) next[i] = sum > 0 ? tasks * next[i] / sum : w[i];
    lanes.sync();
  }
};

}  // namespace mtlkernels
