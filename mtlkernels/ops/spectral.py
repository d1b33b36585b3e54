"""The ops of the methods that look at K's singular values: ConFIG, IMTL-G, Aligned-MTL."""

from __future__ import annotations

from enum import IntEnum

from torch import Tensor

from mtlkernels.ops.registry import define_solver


class EquiangularLength(IntEnum):
    """The length of the direction that makes the same angle with every gradient."""

    PROJECTIONS = 0  # the sum of the gradients' projections on it: ConFIG
    UNIT_SUM = 1  # sum w = 1, or sum |w| = 1 where sum w is not positive: IMTL-G


_equiangular = define_solver("equiangular", ", int length")


def equiangular(gram: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """The direction along sum_i y_i g_i / ||g_i||, y = C^+ 1 with C the cosines. Degree 0.

    ConFIG (arXiv 2408.11104) and IMTL-G (ICLR 2021) share it.

    Args:
        gram: (T, T) float64.
        length: see `EquiangularLength`.

    Returns:
        weights (T) float64 and status (T) int64. STATIONARY where the unit gradients add up to
        zero: the weights are then 0.
    """
    return _equiangular(gram, length)


class AlignedScale(IntEnum):
    """The singular value that Aligned-MTL gives all principal components."""

    MIN = 0  # the smallest
    MEDIAN = 1  # the median, of an even number the lower of the middle two
    RMSE = 2  # the root of the mean eigenvalue of K


_aligned = define_solver("aligned", ", Tensor? preference, int scale, bool mean")


def aligned(
    gram: Tensor,
    preference: Tensor | None = None,
    scale: int = AlignedScale.MIN,
    mean: bool = False,
) -> tuple[Tensor, Tensor]:
    """Aligned-MTL's weights (arXiv 2305.19000): s V Lambda^(-1/2) V^T p over K's rank. Degree 0.

    Args:
        gram: (T, T) float64.
        preference: (T) float64, p; None for ones.
        scale: which s, see `AlignedScale`.
        mean: divide by the sum of p over the tasks that take part.

    Returns:
        weights (T) float64 and status (T) int64.
    """
    return _aligned(gram, preference, scale, mean)
