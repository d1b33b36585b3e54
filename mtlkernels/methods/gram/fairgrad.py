"""FairGrad: alpha-fair shares of the step."""

from __future__ import annotations

import math

from torch import Tensor

from mtlkernels import ops
from mtlkernels.methods.gram.base import GramMethod


class FairGrad(GramMethod):
    r"""Fair resource allocation in multi-task learning (Ban and Ji, arXiv 2402.15638).

    .. math:: w > 0 \;\text{ with }\; (K w)_i = w_i^{-1/\alpha}

    w > 0 with (K w)_i = w_i^(-1/alpha): the direction that maximises the alpha-fair utility
    sum_i <g_i, d>^(1 - alpha) / (1 - alpha) on a ball. alpha -> 0 is the plain sum, 1 is NashMTL
    without its clip, 2 minimises the sum of 1 / <g_i, d>, alpha -> inf maximises the smallest
    <g_i, d>. Solved exactly by Newton's method. Degree (1 - alpha) / (1 + alpha) in the gradients.

    If zero is in the convex hull of the gradients, there is no solution: the weights solve the
    equations of K with its diagonal times 1 + 1e-6, and the status is NO_SOLUTION. Where rounding
    noise of K (8 * 2^-53 of the norms' product) may move the direction by more than 1e-4 of its
    length, or Newton's method reaches its bound on work, the diagonal is multiplied by
    1 + 2.3e-13, which bounds the weights, and the status is ILL_CONDITIONED.

    Args:
        alpha: above 0. Every published run uses 2, the default here; the default of the published
            class, and of LibMTL, is 1.

    Known implementations differ in the direction's length: the published code multiplies the shared
    gradient by T and clips it at norm 1, LibMTL weights the losses (so heads too) and does neither.
    Their least-squares solver loses the solution where gradients are small.

    Use when:
        tasks conflict and have gradients of different lengths, and you can tune the learning
        rate anew: among the methods that solve a problem it has the best balanced published
        results.

    Avoid when:
        your learning rate must stay: the direction's length has degree (1 - alpha) / (1 +
        alpha) in the gradients.
    """

    paper = "arXiv 2402.15638"

    def __init__(self, alpha: float = 2.0) -> None:
        super().__init__()
        if not (math.isfinite(alpha) and alpha > 0):
            raise ValueError(f"alpha={alpha}: it must be finite and positive")
        self.alpha = float(alpha)

    def forward(self, gram: Tensor, losses: Tensor | None = None) -> Tensor:
        weights, self.status = ops.fairgrad(gram, self.alpha)
        return weights

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}"
