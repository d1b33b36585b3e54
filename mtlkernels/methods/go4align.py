"""GO4Align: tasks in groups, one weight a group."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mtlkernels.methods.base import LossMethod

_ROUNDS = 32  # of the clustering; on T numbers it stands still long before


class GO4Align(LossMethod):
    """Group optimization for multi-task alignment (Shen et al., arXiv 2404.06486).

    p <- p exp(-eta L), normalised to sum 1; v_i = p_i sum_j L_j / L_i; the v are clustered, and the
    weight of a task is the mean v of its cluster. A loss <= 0: INVALID_LOSS.

    Args:
        groups: number of clusters, at most T of which are used; the published code asks for it per
            data set. 1 gives all tasks the mean v.
        eta: step of p; 1e-4, the published code's.

    The clustering is Lloyd's on T numbers, a fixed number of rounds from the quantiles: always the
    same answer and no word to the host. The published code starts k-means at random, on the host,
    so its groups may differ from step to step. Scaling all losses changes p unless eta is scaled.
    """

    paper = "arXiv 2404.06486"
    keeps = "a probability a task"

    log_p: Tensor

    def __init__(self, groups: int = 2, *, eta: float = 1e-4) -> None:
        super().__init__()
        if groups < 1:
            raise ValueError(f"groups={groups}: there is at least one")
        if not (math.isfinite(eta) and eta >= 0):
            raise ValueError(f"eta={eta}: it must be finite and at least 0")
        self.groups = groups
        self.eta = float(eta)
        self.register_state("log_p", 0.0)

    def forward(self, losses: Tensor) -> Tensor:
        losses = self.admit(losses, above=0.0)
        seen = losses.detach()
        log_p = (self.log_p - self.eta * seen).log_softmax(dim=0)
        self.remember(log_p=log_p)
        v = log_p.exp() * seen.sum() / seen
        return (group_means(v, min(self.groups, len(v))) * losses).sum()

    def extra_repr(self) -> str:
        return f"groups={self.groups}, eta={self.eta}"


def group_means(values: Tensor, groups: int) -> Tensor:
    """(T) each value replaced by the mean of its cluster: Lloyd's algorithm from the quantiles."""
    numbers = torch.arange(groups, device=values.device)
    centres = values.sort().values[(2 * numbers + 1) * len(values) // (2 * groups)]
    for _ in range(_ROUNDS):
        member = (_nearest(values, centres)[:, None] == numbers).to(values.dtype)
        count = member.sum(dim=0)
        means = (member * values[:, None]).sum(dim=0) / count
        centres = torch.where(count > 0, means, centres)
    return centres[_nearest(values, centres)]


def _nearest(values: Tensor, centres: Tensor) -> Tensor:
    return (values[:, None] - centres).abs().argmin(dim=1)
