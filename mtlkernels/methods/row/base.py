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
        directions: a flat direction for each gradient list, as `ops.combine` lays it out.
        weights: (T) float64, where the directions are a weighted sum of T rows; else None.
        gram: (T, T) float64, inner products of the rows that the weights belong to, where the
            method has them; else None.
        head_weights: (T) float64, what `weight_heads=True` multiplies the gradients of heads by,
            where the rows are not gradients of the losses themselves; None is the weights.
    """

    directions: list[Tensor]
    weights: Tensor | None = None
    gram: Tensor | None = None
    head_weights: Tensor | None = None


class RowMethod(Method):
    """A rule for the gradients themselves: by element, or with a state of their size.

    A method of one's own only has to define `forward`; where it leaves `status` alone, the report
    says what its Gram matrix says, or without one what the losses say.

    Attributes:
        weighs: whether its answers have weights, which `weight_heads=True` needs.
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
        """The directions of one step.

        Args:
            lists: one gradient list, T * P tensors as the ops take them, for each dtype and device
                of the parameters; at least one.
            num_tasks: T.
            losses: (T) the tasks' losses, for the methods that use them.
        """
