"""PCGrad: project each gradient out of the way of those it conflicts with."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from mtlkernels import ops
from mtlkernels.methods.gram.base import Drawing


class PCGrad(Drawing):
    r"""Gradient surgery (Yu et al., arXiv 2001.06782).

    .. math::
        v_i \leftarrow v_i - \frac{\min(0, \langle v_i, g_j \rangle)}{\lVert g_j \rVert^2} g_j
        \;\text{ for the } j \ne i \text{ in random order}, \qquad d = \sum_i v_i

    Task i starts from v = g_i, visits the other tasks j in random order, and where v . g_j < 0
    takes v <- v - (v . g_j / ||g_j||^2) g_j with the original g_j. The direction is the sum of the
    v_i. Computed from K alone: O(T^3) scalar work, nothing as long as a gradient. Exact, without
    epsilon: a zero gradient is never projected on and gets weight 0. Homogeneous of degree 1 in the
    gradients.

    Args:
        reduction: "sum", as in the paper and most code, or "mean", over the tasks whose gradient is
            not zero (the WeiChengTseng port always averages; pytorch_optimizer does by default).
        seed: the seed of the visiting orders, which depend only on it and on the number of calls
            and are the same on every device and rank; both are in `state_dict`.

    Known implementations differ in the order (the TensorFlow original does not shuffle, SamsungLabs
    uses one order for all rows, ConFIG none), in visiting j = i as well, which is not a no-op for
    three tasks or more, and in epsilons of the denominator. `order` reproduces any fixed order.

    Use when:
        a few tasks conflict at times, and you want the plain sum in all other steps.

    Avoid when:
        the gradients differ in length rather than in direction: it then is the plain sum. For
        three tasks or more the direction may still conflict with a task; `UPGrad` never does.
    """

    paper = "arXiv 2001.06782"
    keeps = "a seed and a count"

    def __init__(self, reduction: Literal["sum", "mean"] = "sum", *, seed: int = 0) -> None:
        super().__init__(seed)
        if reduction not in ("sum", "mean"):
            raise ValueError(f'reduction={reduction!r}: choose "sum" or "mean"')
        self.reduction = reduction

    def forward(
        self, gram: Tensor, losses: Tensor | None = None, order: Tensor | None = None
    ) -> Tensor:
        """Weights for one step.

        Args:
            gram: (T, T) float64.
            losses: not used.
            order: (T, T-1) int64, row i is the other tasks as task i visits them; None draws one.
        """
        mean = self.reduction == "mean"
        if order is None:
            self._follow(gram)
            weights, self.status = ops.pcgrad_drawn(gram, self.seed, self.step, mean)
        else:
            weights, self.status = ops.pcgrad(gram, order, mean)
        return weights

    def extra_repr(self) -> str:
        return f"reduction={self.reduction!r}"
