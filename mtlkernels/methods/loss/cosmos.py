"""COSMOS: a weighted sum, and a reward for losses in the direction of the preference."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mtlkernels.methods.loss.base import LossMethod
from mtlkernels.methods.numbers import Numbers
from mtlkernels.methods.preference import preferred_shares, register_preference


class COSMOS(LossMethod):
    r"""COSMOS's scalarisation (Ruchte, Grabocka, arXiv 2103.13392).

    .. math:: L = \sum_i r_i L_i - \lambda \frac{\sum_i r_i L_i}{\lVert r \rVert \lVert L \rVert}

    r is the preference as shares. The second term is lambda times the cosine between the losses and
    r, so the losses approach the ray of the preference. The paper draws r for each batch and gives
    it to the network as an input; only the scalarisation is here. It has no degree: the cosine does
    not change with the losses' scale, so losses times s ask for lambda times s. Losses that are
    all 0 have no cosine: that term is 0 then. A weight may be negative.

    Args:
        lam: lambda, at least 0. The paper uses 0.01 to 8 and no common value, torchjd has no
            default; 1 here is the absence of a choice, not a recommendation.
        preference: one number per task, at least 0, in order or by name, as shares; None is equal
            shares.

    Use when:
        several networks, or one that knows the preference, should cover a Pareto front.

    Avoid when:
        the losses differ in scale: the ray is in their own units.
    """

    paper = "arXiv 2103.13392"

    preference: Tensor

    def __init__(self, lam: float = 1.0, preference: Numbers | None = None) -> None:
        super().__init__()
        if not (math.isfinite(lam) and lam >= 0):
            raise ValueError(f"lam={lam}: it must be finite and at least 0")
        self.lam = float(lam)
        register_preference(self, preference)

    def forward(self, losses: Tensor) -> Tensor:
        losses = self.admit(losses)
        r = preferred_shares(self, self.taking_part())
        weighted = (r * losses).sum()
        length = torch.linalg.vector_norm(losses)
        size = torch.where(length == 0, 1.0, length) * torch.linalg.vector_norm(r)
        return weighted - self.lam * weighted / size

    def extra_repr(self) -> str:
        return f"lam={self.lam}, preference={self.preference.tolist() or None}"
