"""PBI: the distance along the preference's ray, and a penalty on the distance from it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mtlkernels.methods.loss.base import LossMethod
from mtlkernels.methods.numbers import Numbers
from mtlkernels.methods.preference import preferred_shares, register_preference


class PBI(LossMethod):
    r"""Penalty-based boundary intersection (Zhang, Li, MOEA/D, IEEE document 4358754).

    .. math::
        L = d_1 + \theta d_2, \qquad d_1 = \langle L - z, \hat r \rangle, \quad d_2 = \lVert L - z -
        d_1 \hat r \rVert, \quad \hat r = \frac{r}{\lVert r \rVert}

    r is the preference. Minimising moves the losses towards the reference point z along the ray
    from z in the direction r. Degree 1 in L - z. A weight may be negative, where a loss is below
    the ray. On the ray d_2 = 0 has the derivative 0; torchjd adds 1e-12 under its root.

    Args:
        theta: at least 0, the penalty; 5, the paper's. 0 is a weighted sum.
        preference: r, one number per task, at least 0, in order or by name; only ratios count. None
            is equal numbers.
        reference: z, one number for all or one per task, in order or by name. No loss should be
            below it.

    Use when:
        the losses should keep given ratios.

    Avoid when:
        you only want weights: a large `theta` makes losses rise that are below the ray.
    """

    paper = "IEEE 4358754"
    keeps = "its tasks' names"

    preference: Tensor
    reference: Tensor

    def __init__(
        self,
        theta: float = 5.0,
        preference: Numbers | None = None,
        *,
        reference: Numbers | float = 0.0,
    ) -> None:
        super().__init__()
        if not (math.isfinite(theta) and theta >= 0):
            raise ValueError(f"theta={theta}: it must be finite and at least 0")
        self.theta = float(theta)
        register_preference(self, preference)
        self.register_numbers("reference", reference)

    def forward(self, losses: Tensor) -> Tensor:
        losses = self.admit(losses)
        r = preferred_shares(self, self.taking_part())
        ray = r / torch.linalg.vector_norm(r)
        away = losses - self.reference
        along = (ray * away).sum()
        return along + self.theta * torch.linalg.vector_norm(away - along * ray)

    def extra_repr(self) -> str:
        return f"theta={self.theta}, preference={self.preference.tolist() or None}"
