"""NTKWeights: losses weighted by the rate at which their residuals can fall."""

from __future__ import annotations

import torch
from torch import Tensor

from mtlkernels import ops
from mtlkernels.methods.base import INVALID_LOSS
from mtlkernels.methods.gram.base import GramMethod, finished


class NTKWeights(GramMethod):
    r"""Weights by the neural tangent kernel of a physics-informed network (arXiv 2007.14527).

    .. math::
        w_i = \frac{\sum_j k_j}{k_i}, \qquad k_i = \bigl\lVert \nabla \sqrt{|L_i|} \bigr\rVert =
        \frac{\lVert g_i \rVert}{2 \sqrt{|L_i|}}

    This is PhysicsNeMo's NTK, from the diagonal of K and the losses alone. For a loss that is one
    squared residual, k_i^2 is its entry of the tangent kernel; Wang et al.'s rule is the ratio of
    the kernel's traces, thus of squares, over all residuals. Degree 1 in the gradients; scaling one
    loss by c makes its weighted gradient sqrt(c) times as long.

    Needs losses. One that is 0 has no k: it takes no part, its weight is 0, INVALID_LOSS. A loss
    that is not finite makes all weights NaN. A zero gradient gets weight 0 and does not count in
    the sum.

    PhysicsNeMo measures every 1000 steps: that is `every=1000` of the optimizer. Its code gives all
    losses the weight 0 from step 1 until the first measurement, since the sum is still empty then;
    here the first step measures.

    Use when:
        the losses are mean squared residuals of one network, as in a physics-informed one.

    Avoid when:
        losses are not squares: the rule then has no reason; take `AvgNorm`.
    """

    paper = "arXiv 2007.14527"

    def forward(self, gram: Tensor, losses: Tensor | None = None) -> Tensor:
        if losses is None:
            raise ValueError("NTKWeights needs the tasks' losses")
        if losses.shape != gram.shape[:1]:
            raise ValueError(f"{losses.numel()} losses were given for {len(gram)} tasks")
        losses = losses.detach().to(gram)
        status = ops.task_status(gram)
        out, bad = losses == 0, ~losses.isfinite()
        self.status = torch.where(out | bad, status | INVALID_LOSS, status)
        counts = (status == 0) & ~out
        k = torch.where(counts, gram.diagonal().sqrt() / (2 * losses.abs().sqrt()), 1.0)
        weights = torch.where(counts, torch.where(counts, k, 0.0).sum() / k, 0.0)
        return finished(weights, status) + torch.where(bad.any(), torch.nan, 0.0)
