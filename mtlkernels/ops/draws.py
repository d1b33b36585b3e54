"""Random numbers for methods that draw."""

from __future__ import annotations

from torch import Tensor

from mtlkernels import reference


def standard_normal(seed: Tensor, step: Tensor, count: int) -> Tensor:
    """Standard normal numbers of one step, in plain torch on the device of the seed.

    Args:
        seed, step: int64 scalars. The draw is a function of them alone: the random bits are the
            same on every device and every rank, the numbers up to the last bits of log and cos.
        count: how many.

    Returns:
        (count) float64.
    """
    return reference.standard_normal(seed, step, count)
