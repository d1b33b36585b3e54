"""SLAW: every loss divided by its own standard deviation."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mtlkernels.methods.loss.base import LossMethod


class SLAW(LossMethod):
    r"""Scaled loss approximate weighting (Crawshaw, Kosecka, arXiv 2109.08218).

    .. math::
        w_i = T \, \frac{1 / s_i}{\sum_j 1 / s_j}, \qquad s_i^2 = \operatorname{EMA}(L_i^2) -
        \operatorname{EMA}(L_i)^2

    w_i = T (1 / s_i) / sum_j (1 / s_j), s_i the standard deviation of loss i over time, an estimate
    of its gradient's norm: s_i^2 = EMA(L_i^2) - EMA(L_i)^2, at least eps^2. The averages are
    bias-corrected, and their difference is carried as one variance, so that nothing cancels. In the
    first step no deviation is known, and the weights are equal, as in the published code. While all
    s_i exceed eps, scaling one loss by a constant changes only the direction's length. The averages
    of a task change in the steps that have it; in its first step it gets the mean weight of the
    others.

    Args:
        beta: of the averages; 0.99, the paper's.
        eps: the smallest deviation; 1e-5, as published.

    Use when:
        you want norm scaling at the price of one backward pass.

    Avoid when:
        losses hardly vary from batch to batch: the deviation then says little about the
        gradient.
    """

    paper = "arXiv 2109.08218"
    keeps = "a mean and a variance per task"

    mean: Tensor
    variance: Tensor
    steps: Tensor

    def __init__(self, beta: float = 0.99, *, eps: float = 1e-5) -> None:
        super().__init__()
        if not 0 <= beta < 1:
            raise ValueError(f"beta={beta}: choose 0 <= beta < 1")
        if not (math.isfinite(eps) and eps > 0):
            raise ValueError(f"eps={eps}: it must be finite and positive")
        self.beta = float(beta)
        self.eps = float(eps)
        self.register_state("mean", 0.0)
        self.register_state("variance", 0.0)
        self.register_state("steps", 0.0)

    def forward(self, losses: Tensor) -> Tensor:
        losses = self.admit(losses)
        known, steps = self.steps > 0, self.steps + 1
        share = (1 - self.beta) / (1 - self.beta**steps)
        change = losses.detach() - self.mean
        variance = (1 - share) * (self.variance + share * change.square())
        self.remember(mean=self.mean + share * change, variance=variance, steps=steps)
        inverse = torch.where(known, 1 / variance.sqrt().clamp_min(self.eps), 0.0)
        mean = torch.where(known.any(), inverse.sum() / known.sum(), 1.0)
        inverse = torch.where(known, inverse, mean)
        return (len(losses) * inverse / inverse.sum() * losses).sum()

    def extra_repr(self) -> str:
        return f"beta={self.beta}, eps={self.eps}"
