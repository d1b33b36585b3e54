"""NashMTL: the bargaining solution between the tasks."""

from __future__ import annotations

import math

from torch import Tensor

from mtlkernels import ops
from mtlkernels.methods.gram.base import GramMethod


class NashMTL(GramMethod):
    r"""Multi-task learning as a bargaining game (Navon et al., arXiv 2202.01017).

    .. math:: w > 0 \;\text{ with }\; (K w)_i = \frac{1}{w_i}

    w > 0 with (K w)_i = 1 / w_i: the direction that maximises sum_i log <g_i, d> on a ball. Solved
    exactly by Newton's method, whatever the gradients' norms. The solution has ||d|| = sqrt(T), so
    the direction is of degree 0 in the gradients.

    If zero is in the convex hull of the gradients (two are opposite, for example), there is no
    solution: the weights solve the equations of K with its diagonal times 1 + 1e-6, and the status
    is NO_SOLUTION. Where rounding noise of K (8 * 2^-53 of the norms' product) may move the
    direction by more than 1e-4 of its length, the diagonal is multiplied by 1 + 2.3e-13, which
    bounds the weights, and the status is ILL_CONDITIONED.

    Args:
        max_norm: a longer direction is shortened to this length. The published code clips at 1.0,
            which is the default here; as ||d|| = sqrt(T) that is always active and the step is the
            unit vector along d. None is the solution itself.

    Known implementations approach the solution by 20 convex problems in cvxpy, compare residuals of
    a normalised K with weights of the other (so their test never ends the loop) and keep the last
    weights where the solver fails. nash-mtl weights the losses, so heads too, and clips the shared
    gradient alone: with `weight_heads=True` heads get the solution's weights, unclipped, for one
    more solve. SamsungLabs overwrites the shared gradient and never clips.

    Use when:
        you want a step of constant length whatever the losses' scales are.

    Avoid when:
        the step should shrink as training converges: schedule the learning rate, or take
        another method. Heads need a different learning rate than the shared parameters.
    """

    paper = "arXiv 2202.01017"

    def __init__(self, max_norm: float | None = 1.0) -> None:
        super().__init__()
        if max_norm is not None and not (math.isfinite(max_norm) and max_norm > 0):
            raise ValueError(f"max_norm={max_norm}: it must be finite and positive, or None")
        self.max_norm = None if max_norm is None else float(max_norm)
        self.own_head_weights = max_norm is not None

    def forward(self, gram: Tensor, losses: Tensor | None = None) -> Tensor:
        bound = math.inf if self.max_norm is None else self.max_norm
        weights, self.status = ops.fairgrad(gram, 1.0, max_norm=bound)
        return weights

    def head_weights(self, gram: Tensor, losses: Tensor | None, weights: Tensor) -> Tensor:
        """The solution before it is clipped."""
        return weights if self.max_norm is None else ops.fairgrad(gram, 1.0)[0]

    def extra_repr(self) -> str:
        return f"max_norm={self.max_norm}"
