// How exact a Gram matrix is: |K_ij - <g_i, g_j>| <= kGramNoise |g_i| |g_j|, on every backend and for every dtype.
//
// Products of float32, bfloat16 and float16 elements are exact in float64. A product is part of at most 62 rounded additions
// (and of one rounding of its own where the gradients are float64), each of at most 2^-53 of what is added; above them sums
// are compensated. Cauchy and Schwarz bound the sum of the products' sizes by |g_i| |g_j|, so 64 * 2^-53 holds whatever the
// signs; rounding errors of random sign leave about 2^-53. The last additions may be the caller's: each group of parameters,
// rank or micro-batch whose matrices are added up costs one.
// reference/gradient_lists.py has the same number; a test compares them.
#pragma once

namespace mtlkernels {

constexpr double kGramNoise = 0x1p-47;

}  // namespace mtlkernels
