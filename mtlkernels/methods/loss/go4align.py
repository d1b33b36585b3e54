"""GO4Align: tasks in groups, one weight a group."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mtlkernels.methods.loss.base import LossMethod


class GO4Align(LossMethod):
    r"""Group optimization for multi-task alignment (Shen et al., arXiv 2404.06486).

    .. math::
        w_i = \operatorname{mean}\{v_j : j \text{ in the cluster of } i\}, \qquad v_i = p_i
        \frac{\sum_j L_j}{L_i}

    p <- p exp(-eta L), normalised to sum 1; v_i = p_i sum_j L_j / L_i; the v are clustered, and the
    weight of a task is the mean v of its cluster. A loss <= 0 takes no part, and its status is
    INVALID_LOSS.

    Args:
        groups: number of clusters, at most T of which are used; the published code asks for it per
            data set. 1 gives all tasks the mean v.
        eta: step of p; 1e-4, the published code's.

    The clusters are those of least variance, computed exactly and without a read by the host. The
    published code runs k-means there from a random start, and may find others from step to step.
    Scaling all losses changes p unless eta is scaled.

    Use when:
        many tasks fall into a few groups.

    Avoid when:
        there are two or three tasks: groups then have one member each.
    """

    paper = "arXiv 2404.06486"
    keeps = "a probability per task"

    log_p: Tensor

    def __init__(self, groups: int = 2, *, eta: float = 1e-4) -> None:
        super().__init__()
        if groups < 1:
            raise ValueError(f"groups={groups}: it must be at least 1")
        if not (math.isfinite(eta) and eta >= 0):
            raise ValueError(f"eta={eta}: it must be finite and at least 0")
        self.groups = groups
        self.eta = float(eta)
        self.register_state("log_p", 0.0, "logits")

    def forward(self, losses: Tensor) -> Tensor:
        losses = self.admit(losses, above=0.0)
        seen, part = losses.detach(), self.taking_part()
        moved = self.log_p - self.eta * seen
        # Only differences of log_p count: with a task that stays behind they are not normalised.
        self.remember(log_p=torch.where(part.all(), moved.log_softmax(dim=0), moved))
        v = self.softmax(moved) * torch.where(part, seen, 0.0).sum() / seen
        return (group_means(v, min(self.groups, len(v)), part) * losses).sum()

    def extra_repr(self) -> str:
        return f"groups={self.groups}, eta={self.eta}"


def group_means(values: Tensor, groups: int, part: Tensor | None = None) -> Tensor:
    """(T) each value replaced by the mean of its cluster, k-means solved exactly.

    Clusters of numbers are runs of the sorted ones, so the best ones of a prefix extend the best
    ones of a shorter prefix by a run: O(groups T^2).

    part: (T) which values count, by default all; the others come last without weight, and get 0.
    """
    part = torch.ones_like(values, dtype=torch.bool) if part is None else part
    order = torch.where(part, values, torch.inf).argsort()
    ordered, counts = values[order], part[order].to(values.dtype)
    places = torch.arange(len(values), device=values.device)
    cost = _run_costs(ordered, counts, places)
    best, starts = cost[0], torch.zeros_like(places)[:, None]
    for _ in range(groups - 1):
        best, end = (best[:-1, None] + cost[1:]).min(dim=0)
        starts = torch.cat([starts[end], end[:, None] + 1], dim=1)
    label = (places[:, None] >= starts[-1]).sum(dim=1) - 1
    member = (label[:, None] == places[:groups]) * counts[:, None]
    means = (member * ordered[:, None]).sum(dim=0) / member.sum(dim=0)
    found = torch.empty_like(values).scatter(0, order, means[label])
    return torch.where(part, found, 0.0)


def _run_costs(ordered: Tensor, counts: Tensor, places: Tensor) -> Tensor:
    """(T, T) sum of squared deviations within the run from i to j; infinite where j < i."""
    x = (ordered - (counts * ordered).sum() / counts.sum()) * counts
    zero = x.new_zeros(1)
    sums, squares = torch.cat([zero, x.cumsum(0)]), torch.cat([zero, x.square().cumsum(0)])
    number = torch.cat([zero, counts.cumsum(0)])
    count = (number[1:] - number[:-1, None]).clamp_min(1)
    within = squares[1:] - squares[:-1, None] - (sums[1:] - sums[:-1, None]).square() / count
    return torch.where(places >= places[:, None], within.clamp_min(0), torch.inf)
