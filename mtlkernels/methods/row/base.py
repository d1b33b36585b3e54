"""What row methods have in common: a direction from the task gradients themselves."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

from torch import Tensor

from mtlkernels.methods.base import (
    Method,
)


class RowStep(NamedTuple):
    """The result of a row method.

    Attributes:
        directions: a flat direction for each gradient list, in the layout of `ops.combine`.
        weights: (T) float64 if the direction is a weighted sum of T vectors; else None.
        gram: (T, T) float64, inner products of these vectors, if the method has them; else None.
        head_weights: (T) float64, by which `weight_heads=True` multiplies the gradients of heads,
            if these vectors are not gradients of the losses themselves; None means the weights.
    """

    directions: list[Tensor]
    weights: Tensor | None = None
    gram: Tensor | None = None
    head_weights: Tensor | None = None


class RowMethod(Method):
    """A rule for the task gradients themselves: by element, or with a state of their size.

    A subclass only has to define `forward`. If it does not set `status`, the report derives the
    status from its Gram matrix, or without one from the losses.

    Attributes:
        weighs: whether its results have weights, which `weight_heads=True` needs.
    """

    family = "row"
    cost = "T backward passes"
    weighs: ClassVar[bool] = False

    @abstractmethod
    def forward(
        self,
        lists: Sequence[Sequence[Tensor]],
        num_tasks: int,
        losses: Tensor | None = None,
    ) -> RowStep:
        """Returns the directions of one step.

        Args:
            lists: one gradient list, T * P tensors as the ops take them, for each dtype and device
                of the parameters; at least one.
            num_tasks: T.
            losses: (T) the tasks' losses, for the methods that use them.
        """
