"""Losses on a logarithmic scale: what matters is the factor by which each one falls."""

from __future__ import annotations

import torch
from torch import Tensor

from mtlkernels.methods.loss.base import LossMethod


class SI(LossMethod):
    r"""Scale-invariant sum, sum_i log L_i: the weights are 1 / L_i.

    .. math:: L = \sum_i \log L_i

    A baseline of Nash-MTL (Navon et al., arXiv 2202.01017). Scaling one loss changes no gradient. A
    loss <= 0 has no logarithm: it takes no part, and its status is INVALID_LOSS. A loss near 0 gets
    an unbounded weight.

    Args:
        log1p: sum log(1 + L_i) instead, as SamsungLabs does: bounded weights 1 / (1 + L_i) that are
            not scale-invariant; losses have to exceed -1.

    Use when:
        the losses have different units: the cheapest answer, in one backward pass.

    Avoid when:
        losses come close to 0: their weights have no bound; `log1p=True` bounds them.
    """

    paper = "arXiv 2202.01017"

    def __init__(self, *, log1p: bool = False) -> None:
        super().__init__()
        self.log1p = log1p

    def forward(self, losses: Tensor) -> Tensor:
        losses = self.admit(losses, above=-1.0 if self.log1p else 0.0)
        logs = losses.log1p() if self.log1p else losses.log()
        return torch.where(self.taking_part(), logs, 0.0).sum()

    def extra_repr(self) -> str:
        return f"log1p={self.log1p}"


class GLS(LossMethod):
    r"""Geometric loss strategy (Chennupati et al., arXiv 1904.08492): (prod_i L_i)^(1/T).

    .. math:: L = \Bigl(\prod_i L_i\Bigr)^{1/T}

    The weights are GLS / (T L_i); computed as exp(mean log L), which neither under- nor overflows.
    Degree 1 in the scale of all losses; scaling one of them by s scales every gradient by s^(1/T).
    A loss <= 0 takes no part and does not count in T; its status is INVALID_LOSS. (The weights that
    LibMTL logs for it are not these.)

    Use when:
        as for `SI`, with a total in the unit of a loss.

    Avoid when:
        as for `SI`: one loss near 0 takes over.
    """

    paper = "arXiv 1904.08492"

    def forward(self, losses: Tensor) -> Tensor:
        logs = self.admit(losses, above=0.0).log()  # 0 for those that take no part
        return (logs.sum() / self.taking_part().sum().clamp_min(1)).exp()
