"""OneSidedPCGrad: auxiliary gradients leave the primary task's way, never the reverse."""

from __future__ import annotations

import torch
from torch import Tensor

from mtlkernels import ops
from mtlkernels.methods.gram.base import GramMethod, finished


class OneSidedPCGrad(GramMethod):
    r"""Gradient surgery with a priority: only auxiliary gradients are projected.

    .. math::
        d = g_p + \sum_{j \ne p} \Bigl(g_j - \frac{\min(0, \langle g_j, g_p \rangle)}{\lVert g_p
        \rVert^2} g_p\Bigr), \qquad p \text{ the primary task}

    An auxiliary gradient that conflicts with the primary one loses its part along it, so the
    primary task never gets less than its own gradient, <g_p, d> >= ||g_p||^2; auxiliary tasks may
    conflict with one another and with d. It is PCGrad's projection (arXiv 2001.06782) in one
    direction, as the unlearning code of SAGO (arXiv 2604.14808) uses it with the retain loss as
    the primary one ("pcgrad_global" there; its "pcgrad" projects in each parameter by itself:
    `PerPart`). Theirs adds 1e-10 to the denominator, here there is no epsilon. Degree 1.

    Args:
        primary: the primary task, by its name or its position; the first one by default.

    A zero gradient gets weight 0; where the primary one is zero, or absent in a step, d is the sum
    of the others.

    Use when:
        one loss is the goal and the others help it: a main task with auxiliary ones, or retaining
        (primary) against forgetting.

    Avoid when:
        all tasks matter alike: take `PCGrad` or `UPGrad`.
    """

    paper = "arXiv 2001.06782"

    def __init__(self, primary: int | str = 0) -> None:
        super().__init__()
        self.primary = checked_task(primary)

    def forward(self, gram: Tensor, losses: Tensor | None = None) -> Tensor:
        self.status = ops.task_status(gram)
        weights = torch.ones_like(gram[0])
        place = self.place_of(self.primary, len(gram), "primary")
        if place is not None:
            square, products = gram[place, place], gram[place]
            added = -products.clamp_max(0).sum() / torch.where(square > 0, square, 1.0)
            here = torch.arange(len(gram), device=gram.device) == place
            weights = torch.where(here, 1 + added, weights)
        return finished(weights, self.status)

    def extra_repr(self) -> str:
        return f"primary={self.primary!r}"


def checked_task(primary: int | str) -> int | str:
    """The task; raises ValueError for a position below 0."""
    if not isinstance(primary, str) and primary < 0:
        raise ValueError(f"primary={primary}: give a name, or a position from 0 on")
    return primary
