// GradVac (arXiv 2010.05874) as weights. Row i of C holds task i's gradient as it is changed, v = sum_k C_ik g_k. It
// visits the other tasks, and where cos(v, g_j) = p lies below its target q = phi_ij, v turns towards g_j until the
// cosine is q:  C_ij += (||v|| / ||g_j||) (q sqrt(1 - p^2) - p sqrt(1 - q^2)) / sqrt(1 - q^2).
// What noise moves of v: by a step with target 0 (PCGrad's) no more than kNoise of its terms, t. With h the distance of v
// from the line of g_j the step is q h / sqrt(1 - q^2) - <v, g_j> / ||g_j|| long; noise moves h by min(kNoise t^2 / h,
// sqrt(2 kNoise) t), and what moved v before counts 1 / sqrt(1 - q^2)-fold.
// The target then follows: phi_ij <- (1 - beta) phi_ij + beta p. Row i alone reads and writes phi's row i. O(T^3).
#pragma once

#include "../common/draws.h"
#include "../common/solver.h"
#include "../linalg/screen.h"

namespace mtlkernels {

// A target is met at a finite weight as long as it stays below 1; this keeps a step below 1e3 ||v||.
constexpr double kLargestTarget = 1 - 1e-6;
// ||v||^2 below this share of (sum_k |C_k| ||g_k||)^2 is rounding: v is zero and has no cosine.
constexpr double kZeroRow = 4 * kNoise;

// phi: (T, T) targets, `next` those of the next step. Where the order names no task, weights are NaN and phi stays. A pair
// without a cosine keeps its target; so do all where some gradient is not finite. corrected: the targets follow at corrected
// pairs only.
struct GradVac : Solver {
  static constexpr const char* kName = "gradvac";
  static constexpr const char* kArguments[] = {"order", "phi", "beta", "corrected"};
  static constexpr int64_t doubles(int64_t tasks) { return 2 * tasks * tasks + 2 * tasks; }

  template <class Lanes>
  MTLKERNELS_HOST_DEVICE static void solve(const Lanes& lanes, const Problem& problem, TaskOrder order, PairNumbers phi,
                                           double beta, bool corrected, NextPairNumbers next) {
    const auto [K, tasks, weights, status, workspace, active] = problem;
    const bool named = names_tasks(lanes, order, tasks);
    const int count = screen(lanes, K, tasks, status, active);
    for (int i = lanes.lane; i < tasks * tasks; i += lanes.lanes) next[i] = phi[i];
    fill(lanes, weights, tasks, count < 0 || !named ? NAN : 0.0);
    if (count <= 0 || !named) return;
    double *C = workspace, *errors = C + 2 * tasks * tasks, *products = errors + tasks;
    for (int i = lanes.lane; i < tasks; i += lanes.lanes) {
      double *row = C + i * tasks, *dots = C + tasks * tasks + i * tasks;  // dots = K row: products of v with all g
      const bool takes_part = K[i * tasks + i] > 0;
      double moved = 0;
      for (int k = 0; k < tasks; ++k) row[k] = k == i && takes_part ? 1.0 : 0.0, dots[k] = K[i * tasks + k];
      for (int visit = 0; takes_part && visit + 1 < tasks; ++visit) {
        const int j = static_cast<int>(order[i * (tasks - 1) + visit]);
        if (!(K[j * tasks + j] > 0)) continue;
        double square = 0, size = 0;
        for (int k = 0; k < tasks; ++k) {
          square += row[k] * dots[k];
          size += std::fabs(row[k]) * std::sqrt(K[k * tasks + k]);
        }
        if (!(square > kZeroRow * size * size)) {
          if (phi[i * tasks + j] != 0) moved += std::sqrt(kZeroRow) * size;
          continue;
        }
        const double ratio = std::sqrt(square / K[j * tasks + j]);  // ||v|| / ||g_j||
        const double cosine = std::fmin(std::fmax(dots[j] / (ratio * K[j * tasks + j]), -1.0), 1.0);
        const double target = std::fmin(phi[i * tasks + j], kLargestTarget);
        const bool below = cosine < target;
        if (below) {
          const double sine = std::sqrt((1 - cosine) * (1 + cosine)), target_sine = std::sqrt((1 - target) * (1 + target));
          const double step = ratio * (target * sine / target_sine - cosine);
          if (target != 0) {
            const double height = std::sqrt(square) * sine, least = std::sqrt(2 * kNoise) * size;
            const double change = height > least ? kNoise * size * size / height : least;
            moved = moved / target_sine + kNoise * size + std::fabs(target) / target_sine * change;
          }
          row[j] += step;
          for (int k = 0; k < tasks; ++k) dots[k] += step * K[j * tasks + k];
        }
        if (below || !corrected) next[i * tasks + j] = (1 - beta) * phi[i * tasks + j] + beta * cosine;
      }
      errors[i] = moved;
    }
    lanes.sync();
    for (int j = lanes.lane; j < tasks; j += lanes.lanes) {
      double sum = 0;
      for (int i = 0; i < tasks; ++i) sum += C[i * tasks + j];
      weights[j] = sum;
    }
    lanes.sync();
    double moved = 0;
    for (int i = 0; i < tasks; ++i) moved += errors[i];
    if (moved == 0) return;
    for (int j = lanes.lane; j < tasks; j += lanes.lanes) {
      double sum = 0;
      for (int k = 0; k < tasks; ++k) sum += K[j * tasks + k] * weights[k];
      products[j] = weights[j] * sum;
    }
    lanes.sync();
    double square = 0;
    for (int j = 0; j < tasks; ++j) square += products[j];
    if (!(moved <= kTolerance * std::sqrt(std::fmax(square, 0.0)))) {
      for (int a = lanes.lane; a < count; a += lanes.lanes) status[active[a]] |= kIllConditioned;
      lanes.sync();
    }
  }
};

}  // namespace mtlkernels
