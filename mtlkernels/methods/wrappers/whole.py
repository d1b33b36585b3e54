"""One set of weights for all parts: the report measures parts, and the direction is unchanged."""

from __future__ import annotations

from torch import Tensor

from mtlkernels import ops
from mtlkernels.methods.gram.base import GramMethod


class Whole(GramMethod):
    """Any Gram method on whole gradients in a step taken with `parts=`.

    The method sees the sum of the parts' Gram matrices, and its weights are used for every part. So
    the direction is the one without parts (up to rounding), and the report also has norms, cosines
    and conflicts of each part.

    Args:
        method: any Gram method except those that take parts themselves or reuse weights (`every=`).

    Raises:
        ValueError: the method takes parts itself or reuses weights.
    """

    keeps = "the method's own state"
    takes_parts = True

    def __init__(self, method: GramMethod) -> None:
        super().__init__()
        measures = isinstance(method, GramMethod) and not hasattr(method, "kept_weights")
        if not measures or getattr(method, "takes_parts", False):
            raise ValueError(
                f"method is a {type(method).__name__}, not a Gram method of whole gradients"
            )
        self.method = method

    def forward(self, gram: Tensor, losses: Tensor | None = None) -> Tensor:
        """Weights for one step.

        Args:
            gram: (B, T, T) float64, a Gram matrix a part, or (T, T).
            losses: (T), for the methods that use them.

        Returns:
            (B, T) float64, the same in each row, or (T).
        """
        whole = gram.sum(dim=0) if gram.dim() == 3 else gram
        weights: Tensor = self.method(whole, losses)
        told: object = self.method.status  # which a method of one's own may leave alone
        if not isinstance(told, Tensor) or told.shape != whole.shape[:1]:
            told = ops.task_status(whole)
        self.status = told
        return weights.expand(len(gram), -1) if gram.dim() == 3 else weights
