// AvgNorm (arXiv 2509.23915): w_i = S / ||g_i||, the sum of the unit gradients at length S. Degree 1 in the gradients
// for every S taken from them, 0 for a constant.
#pragma once

#include "../common/solver.h"
#include "../linalg/cosines.h"

namespace mtlkernels {

// S, over the tasks whose gradient is not zero. Length of the sum, or a statistic of the norms, or the given constant.
enum class NormScale : int64_t {
  kSum = 0,
  kMax = 1,
  kMean = 2,
  kRms = 3,
  kMedian = 4,
  kMin = 5,
  kConstant = 6,
  kHarmonic = 7,
  kLast = kHarmonic
};

// The middle of `count` norms, or the mean of the two middle ones: each lane ranks its share by counting.
template <class Lanes>
MTLKERNELS_HOST_DEVICE double median(const Lanes& lanes, const double* norm, int count, double* sorted) {
  for (int i = lanes.lane; i < count; i += lanes.lanes) {
    int rank = 0;
    for (int j = 0; j < count; ++j) rank += norm[j] < norm[i] || (norm[j] == norm[i] && j < i);
    sorted[rank] = norm[i];
  }
  lanes.sync();
  return 0.5 * (sorted[(count - 1) / 2] + sorted[count / 2]);
}

struct AvgNorm : Solver {
  static constexpr const char* kName = "avgnorm";
  static constexpr const char* kArguments[] = {"scale", "constant"};
  static constexpr int64_t doubles(int64_t tasks) { return 2 * tasks; }

  template <class Lanes>
  MTLKERNELS_HOST_DEVICE static void solve(const Lanes& lanes, const Problem& problem, NormScale scale, double constant) {
    const auto [K, tasks, weights, status, workspace, active] = problem;
    const int count = screen(lanes, K, tasks, status, active);
    fill(lanes, weights, tasks, count < 0 ? NAN : 0.0);
    if (count <= 0) return;
    double* norm = workspace;
    for (int a = lanes.lane; a < count; a += lanes.lanes) norm[a] = std::sqrt(K[active[a] * tasks + active[a]]);
    lanes.sync();

    double length = constant;
    if (scale == NormScale::kMedian) {
      length = median(lanes, norm, count, workspace + tasks);
    } else if (scale == NormScale::kSum) {
      double square = 0;
      for (int i = 0; i < tasks; ++i)
        for (int j = 0; j < tasks; ++j) square += K[i * tasks + j];
      length = std::sqrt(square > 0 ? square : 0.0);
      double terms = 0;
      for (int a = 0; a < count; ++a) terms += norm[a];
      // Noise moves S^2 by kNoise terms^2; it turns no direction, so the weights stay.
      if (!(0.5 * kNoise * terms * terms <= kTolerance * length * length))
        for (int a = lanes.lane; a < count; a += lanes.lanes) status[active[a]] |= kIllConditioned;
    } else if (scale != NormScale::kConstant) {
      double largest = norm[0], smallest = norm[0], sum = 0, squares = 0, inverses = 0;
      for (int a = 0; a < count; ++a) {
        largest = norm[a] > largest ? norm[a] : largest;
        smallest = norm[a] < smallest ? norm[a] : smallest;
        sum += norm[a];
        squares += norm[a] * norm[a];
        inverses += 1 / norm[a];
      }
      length = scale == NormScale::kMax        ? largest
               : scale == NormScale::kMin      ? smallest
               : scale == NormScale::kMean     ? sum / count
               : scale == NormScale::kHarmonic ? count / inverses
                                               : std::sqrt(squares / count);
    }
    for (int a = lanes.lane; a < count; a += lanes.lanes) weights[active[a]] = length / norm[a];
    lanes.sync();
  }
};

}  // namespace mtlkernels
