// What K knows: the one bound on its rounding, from which every solver judges rank and cancellation.
//
// The gradients are taken as stored. |error of K_ij| <= kGramNoise n_i n_j, n_i = sqrt(K_ii) (gram_noise.h), where every
// rounding has the same sign; with random signs 2^-53 n_i n_j is left, and solvers that scale K add as much. kNoise, eight
// times that, is what an error of K can be. What an answer loses by it is bounded to first order, by a formula of each
// method's own; where the bound exceeds kTolerance of the answer the status says kIllConditioned.
//
// Rank is decided by the part of a gradient outside the span of others, r = g_i - sum_j x_j g_j: K gives its square up to
//     kNoise (n_i + sum_j |x_j| n_j)^2.
// A square above that counts; one within kClear of the bound is what exact dependence leaves (K's own error is mostly less
// than a unit); one between may be either, and is taken as dependence with kIllConditioned.
#pragma once

#include "../common/gram_noise.h"

namespace mtlkernels {

constexpr double kNoise = kGramNoise / 8;
constexpr double kClear = 1.0 / 8;
constexpr double kTolerance = 1e-4;

// What a doubtful answer is solved with instead: K's diagonal times 1 + kRidge, well above what noise takes from K's
// eigenvalues (kNoise T of the cosines'), so that no weight grows beyond 1 / sqrt(kRidge) of the answer.
constexpr double kRidge = 256 * kNoise;

}  // namespace mtlkernels
