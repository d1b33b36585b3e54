"""Trimmed mean: the mean over the tasks without the extremes, in each element."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mtlkernels import ops
from mtlkernels.methods.row.base import RowMethod, RowStep


class TrimmedMean(RowMethod):
    r"""Coordinate-wise trimmed mean (Yin et al., ICML 2018, arXiv 1803.01498).

    .. math:: d = \text{mean of the } T - 2 \, \text{trim} \text{ middle values, by element}

    In each element d is the mean of the T values that remain when the `trim` largest and the `trim`
    smallest are left out. A rule against a few corrupted tasks or workers. An absent gradient
    counts as zeros, like a zero row of the Jacobian in torchjd. An infinity is an extreme value and
    may be trimmed; a NaN reaches the direction, where torchjd sorts it to the large values and may
    trim it. Homogeneous of degree 1 in the gradients.

    Args:
        trim: at least 0 (the plain mean) and below T / 2. torchjd's trim_number, which has no
            default there; here 1, the least that trims. In a step with absent tasks it is reduced
            so that one or two of the present tasks remain.

    There are no weights and no Gram matrix, so the report has neither.

    Use when:
        one task's (or worker's) gradient may be corrupt.

    Avoid when:
        every task has its own meaning: the largest and the smallest values are ignored
        everywhere.
    """

    paper = "arXiv 1803.01498"

    def __init__(self, trim: int = 1) -> None:
        super().__init__()
        if trim < 0:
            raise ValueError(f"trim={trim}: it must not be negative")
        self.trim = trim

    def forward(
        self,
        lists: Sequence[Sequence[Tensor]],
        num_tasks: int,
        losses: Tensor | None = None,
    ) -> RowStep:
        trim = self.trim
        if self._present is not None:
            trim = min(trim, (num_tasks - 1) // 2)
        if 2 * trim >= num_tasks:
            raise ValueError(
                f"trim={self.trim} leaves none of {num_tasks} tasks: it must be below half their "
                "number"
            )
        return RowStep([ops.trimmed_mean(grads, num_tasks, trim) for grads in lists])

    def extra_repr(self) -> str:
        return f"trim={self.trim}"
