// Random numbers of a step from a counter-based generator: the same on every device, rank and run; the counter is the
// only state. The order in which PCGrad's and GradVac's tasks visit each other, and normal numbers.
#pragma once

#include "lanes.h"

namespace mtlkernels {

// SplitMix64 (Steele, Lea, Flood 2014): the counter's successor and the mix of its bits.
MTLKERNELS_HOST_DEVICE inline uint64_t splitmix64(uint64_t x) {
  x += 0x9e3779b97f4a7c15ull;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

// order: (T, T - 1). Row i shuffles the others (Fisher and Yates), the draw for place p being number i T + p of the step.
template <class Lanes, class Index>
MTLKERNELS_HOST_DEVICE void visiting_order(const Lanes& lanes, uint64_t seed, uint64_t step, int tasks, Index* order) {
  const uint64_t stream = splitmix64(splitmix64(seed) + step);
  for (int i = lanes.lane; i < tasks; i += lanes.lanes) {
    Index* row = order + i * (tasks - 1);
    for (int p = 0; p + 1 < tasks; ++p) row[p] = p < i ? p : p + 1;
    for (int p = tasks - 2; p > 0; --p) {
      const uint64_t draw = splitmix64(stream + static_cast<uint64_t>(i) * tasks + p) >> 1;
      const int other = static_cast<int>(draw % static_cast<uint64_t>(p + 1));
      const Index kept = row[p];
      row[p] = row[other];
      row[other] = kept;
    }
  }
  lanes.sync();
}

// Whether every entry of an order (T, T - 1) names a task: it is data, which the host cannot check for a GPU. By every lane
// alike.
template <class Lanes>
MTLKERNELS_HOST_DEVICE bool names_tasks(const Lanes& lanes, const int64_t* order, int tasks) {
  bool valid = true;
  for (int i = lanes.lane; i < tasks * (tasks - 1); i += lanes.lanes) valid = valid && order[i] >= 0 && order[i] < tasks;
  return !lanes.any(!valid);
}

// `visiting_order` as a launch takes it: seed and step are on the device.
struct VisitingOrder {
  template <class Lanes>
  MTLKERNELS_HOST_DEVICE static void solve(const Lanes& lanes, const int64_t* seed, const int64_t* step, int tasks,
                                           int64_t* order) {
    visiting_order(lanes, static_cast<uint64_t>(*seed), static_cast<uint64_t>(*step), tasks, order);
  }
};

// x: (n) standard normal numbers (Box and Muller), number i from the draws 2 i and 2 i + 1 of the step.
struct NormalNumbers {
  template <class Lanes>
  MTLKERNELS_HOST_DEVICE static void solve(const Lanes& lanes, const int64_t* seed, const int64_t* step, int64_t n,
                                           double* x) {
    const uint64_t stream = splitmix64(splitmix64(static_cast<uint64_t>(*seed)) + static_cast<uint64_t>(*step));
    constexpr double kUnit = 1.0 / (1ull << 53);
    for (int64_t i = lanes.lane; i < n; i += lanes.lanes) {
      const double radius = static_cast<double>((splitmix64(stream + 2 * i) >> 11) + 1) * kUnit;  // in (0, 1]
      const double angle = static_cast<double>(splitmix64(stream + 2 * i + 1) >> 11) * kUnit;
      x[i] = std::sqrt(-2 * std::log(radius)) * std::cos(6.283185307179586 * angle);
    }
    lanes.sync();
  }
};

}  // namespace mtlkernels
