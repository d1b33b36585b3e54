"""BLUR: the retain gradient, without its part along the forget gradient."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mtlkernels import ops
from mtlkernels.methods.gram.base import GramMethod, finished


class BLUR(GramMethod):
    r"""Bi-level unlearning (Reisizadeh et al., EACL 2026, arXiv 2506.08164), the projected step.

    .. math::
        d = \gamma g_F + \alpha \Bigl(g_R - \frac{\langle g_R, g_F \rangle}{\lVert g_F \rVert^2}
        g_F\Bigr)

    Two tasks, retain then forget, both losses to be minimised (a forget loss such as NPO, not the
    likelihood of what is to be forgotten). The forget loss is the lower level and goes first: of
    the retain gradient only the part orthogonal to it is kept, whether they conflict or agree. So
    <g_F, d> = gamma ||g_F||^2. A zero gradient gets weight 0. Degree 1 in the gradients.

    Args:
        gamma: finite, of the forget gradient.
        alpha: finite, of the retain gradient's orthogonal part.

    The formula is that of the baseline in SAGO's code, which adds 1e-10 to the denominator; here
    there is no epsilon. The values 1 and 1 are ours: the plain sum of both.
    The first step's names are retain and forget, in that order.

    Use when:
        forgetting has priority, and retaining must not slow it down.

    Avoid when:
        retaining has priority: take `OneSidedPCGrad` with the retain loss as the primary one.
    """

    paper = "arXiv 2506.08164"

    def __init__(self, gamma: float = 1.0, alpha: float = 1.0) -> None:
        super().__init__()
        for name, value in (("gamma", gamma), ("alpha", alpha)):
            if not math.isfinite(value):
                raise ValueError(f"{name}={value}: it must be finite")
        self.gamma, self.alpha = float(gamma), float(alpha)

    def forward(self, gram: Tensor, losses: Tensor | None = None) -> Tensor:
        if len(gram) != 2:
            raise ValueError(f"BLUR takes two tasks, retain and forget, not {len(gram)}")
        self.status = ops.task_status(gram)
        square = gram[1, 1]
        share = gram[0, 1] / torch.where(square > 0, square, 1.0)
        forget = self.gamma - self.alpha * share
        return finished(torch.stack([torch.full_like(forget, self.alpha), forget]), self.status)

    def extra_repr(self) -> str:
        return f"gamma={self.gamma}, alpha={self.alpha}"
