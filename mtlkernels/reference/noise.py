"""What K knows: the one bound on its rounding for every solver; csrc/solvers/noise.h derives it.

|error of K_ij| <= NOISE n_i n_j. A part of a gradient outside the span of others is there where its
square exceeds NOISE (n_i + sum_j |x_j| n_j)^2; below CLEAR of that it is not; between, the answer
is flagged. So it is where noise moves it by more than TOLERANCE, to first order.
"""

from __future__ import annotations

from mtlkernels.reference.lists import GRAM_NOISE

NOISE = GRAM_NOISE / 8
CLEAR = 1 / 8
TOLERANCE = 1e-4
RIDGE = 256 * NOISE  # on K's diagonal, of itself, where an answer is doubtful
