"""ResNorm: GradNorm's rule with the losses in place of gradient norms."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mtlkernels.methods.loss.uw import Learned


class ResNorm(Learned):
    r"""Residual normalisation: weights learned so that weighted losses follow training rates.

    .. math::
        L = \sum_i \bar w_i L_i + \sum_i \bigl| w_i \bar L_i - m r_i^\alpha \bigr|, \qquad w = T
        \operatorname{softmax}(s), \quad r_i = \frac{L_i / L_i(0)}{\operatorname{mean}_j L_j /
        L_j(0)}

    m is the mean of the losses, s is learned; a bar marks what is constant, so the model sees the
    first sum, with weights w that sum to T, and s the second. It is PhysicsNeMo's aggregator of
    this name, GradNorm (arXiv 1711.02257) without gradients; no paper of its own is known. Pass
    `method.parameters()` to the optimizer.

    Args:
        num_tasks: T.
        alpha: at least 0, the strength of the pull towards equal rates; 1, as in PhysicsNeMo.

    PhysicsNeMo writes the normalisation of w into s before each step and lets no derivative pass
    it; here it is part of the formula, also without a derivative, and s differs by a constant. m is
    the mean of the losses without weights, as there. Losses must be positive: one <= 0 takes no
    part in its step, INVALID_LOSS. L_i(0) is the first good loss, in the state. The second sum is
    in the losses' own units, so the rate at which s moves is too: with Adam only its ratio to
    other steps matters.

    Use when:
        you come from PhysicsNeMo and want the same rule.

    Avoid when:
        you cannot add `method.parameters()` to the optimizer; `ReLoBRaLo` learns nothing.
    """

    paper = "arXiv 1711.02257"
    keeps = "a scalar and a first loss per task"

    start: Tensor

    def __init__(self, num_tasks: int, alpha: float = 1.0) -> None:
        super().__init__(num_tasks, 0.0)
        if not (math.isfinite(alpha) and alpha >= 0):
            raise ValueError(f"alpha={alpha}: it must be finite and at least 0")
        self.alpha = float(alpha)
        self.register_state("start", math.nan)

    def forward(self, losses: Tensor) -> Tensor:
        losses = self.admit(losses, above=0.0)
        part, seen = self.taking_part(), losses.detach()
        start = torch.where(self.start.isnan(), seen, self.start)
        self.remember(start=start)
        count = part.sum()
        s = self.present_s()
        total = torch.where(part, s.detach(), -torch.inf).logsumexp(dim=0)
        weights = (s - torch.where(part.any(), total, 0.0)).exp() * count
        rate = torch.where(part, seen / start, 0.0)
        rate = rate * count / torch.where(part.any(), rate.sum(), 1.0)
        mean = torch.where(part, seen, 0.0).sum() / count.clamp_min(1)
        apart = (weights * seen - mean * rate**self.alpha).abs()
        shares = torch.where(part, apart + weights.detach() * losses, 0.0)
        return shares.sum()

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, alpha={self.alpha}"
