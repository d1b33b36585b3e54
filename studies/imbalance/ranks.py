"""Rank correlations, and how far they move when seeds and tasks are drawn anew."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

REPLICATES = 2000
LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A number and the ends of its bootstrap interval, of `LEVEL`."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Rivals:
    """Spearman's correlation of what is to be explained with each of two rivals.

    `lead` is |first| - |second|: above 0 the first explains more. Without a second rival it and the
    lead are None.
    """

    points: int
    first: Estimate
    second: Estimate | None = None
    lead: Estimate | None = None


def ranks(values: Tensor) -> Tensor:
    """Ranks from 1 of the last dimension, ties sharing the mean of theirs, float64."""
    below = values[..., :, None] > values[..., None, :]
    tied = values[..., :, None] == values[..., None, :]
    return below.sum(-1).double() + (tied.sum(-1).double() + 1) / 2


def spearman(x: Tensor, y: Tensor) -> Tensor:
    """Spearman's rank correlation along the last dimension; NaN where one does not vary."""
    first, second = ranks(x), ranks(y)
    first = first - first.mean(-1, keepdim=True)
    second = second - second.mean(-1, keepdim=True)
    product = (first * second).sum(-1)
    return product / (first.square().sum(-1) * second.square().sum(-1)).sqrt()


def compare(first: Tensor, second: Tensor | None, explained: Tensor, seed: int = 0) -> Rivals:
    """The rivals against `explained`, all (runs, tasks), over all runs and tasks together.

    The interval is that of a bootstrap over both: runs and tasks are drawn with replacement, each
    in whole rows and columns, because the tasks of a run are not independent, nor are the runs of
    a task. Draws in which something does not vary are left out.
    """
    generator = torch.Generator().manual_seed(seed)
    rivals = [first] if second is None else [first, second]
    found = []
    for _ in range(REPLICATES):
        runs, tasks = (torch.randint(n, (n,), generator=generator) for n in explained.shape)
        found.append(_correlations(*(m[runs][:, tasks] for m in (explained, *rivals))))
    draws = torch.stack(found)
    draws = draws[draws.isfinite().all(dim=1)]
    values = _correlations(explained, *rivals)
    ends = torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=torch.float64)
    low, high = (
        torch.quantile(draws, ends, dim=0)
        if len(draws)
        else torch.full((2, len(values)), torch.nan)
    )
    estimates = [
        Estimate(*(part.item() for part in row)) for row in zip(values, low, high, strict=True)
    ]
    return Rivals(explained.numel(), *estimates)


def _correlations(explained: Tensor, *rivals: Tensor) -> Tensor:
    """The correlation with each rival and, of two, the lead: (1) or (3)."""
    found = [spearman(rival.flatten(), explained.flatten()) for rival in rivals]
    leads = [first.abs() - second.abs() for first, second in itertools.pairwise(found)]
    return torch.stack(found + leads)
