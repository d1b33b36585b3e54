"""The op of NashMTL, FairGrad and PIVRG."""

from __future__ import annotations

import math

from torch import Tensor

from mtlkernels.ops.registry import define_solver

_fairgrad = define_solver("fairgrad", ", float alpha, Tensor? importance, float max_norm")


def fairgrad(
    gram: Tensor, alpha: float, importance: Tensor | None = None, max_norm: float = math.inf
) -> tuple[Tensor, Tensor]:
    """The w > 0 with (K w)_i = (p_i / w_i)^(1/alpha), by Newton's method.

    NashMTL (arXiv 2202.01017) is alpha = 1, FairGrad (arXiv 2402.15638) any alpha, PIVRG alpha = 2
    with its own p. Degree -2 alpha / (1 + alpha) in the gradients' scale.

    Args:
        gram: (T, T) float64.
        alpha: above 0.
        importance: (T) float64, p > 0; None for ones. Where one is not positive and finite, all
            weights are NaN.
        max_norm: a direction that is longer is shortened to this.

    Returns:
        weights (T) float64 and status (T) int64. NO_SOLUTION where zero lies in the convex hull of
        the gradients: the weights then solve the equations of K with its diagonal times 1 + 1e-6.
        ILL_CONDITIONED where rounding noise of K may move the direction by more than 1e-4, or
        Newton's method reaches its bound on work: then the diagonal is multiplied by 1 + 2.3e-13.
    """
    return _fairgrad(gram, alpha, importance, max_norm)
