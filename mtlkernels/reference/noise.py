"""The bound on K's rounding noise that all solvers use; csrc/linalg/noise.h derives it.

|error of K_ij| <= NOISE n_i n_j. A gradient's part outside the span of others is nonzero if its
square exceeds NOISE (n_i + sum_j |x_j| n_j)^2 and zero if it is below CLEAR times that; in between
the status is ILL_CONDITIONED. So it is if noise moves the answer by more than TOLERANCE, to first
order.
"""

from __future__ import annotations

from mtlkernels.reference.gradient_lists import GRAM_NOISE

NOISE = GRAM_NOISE / 8
CLEAR = 1 / 8
TOLERANCE = 1e-4
RIDGE = 256 * NOISE  # a share of K's diagonal added to it if the status is ILL_CONDITIONED
