"""Scenarios in which the tasks come in another order, or some of them, on all ranks."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch.distributed as dist
from dist_harness import alone
from dist_models import advance, batches, ddp, fresh, own, reference, same_params, same_reports
from torch import Tensor

from mtlkernels import DWA, FixedWeights, GradNorm, GradVac, MoCo

WORLDS = (2,)


def named(losses: list[Tensor], order: str) -> dict[str, Tensor]:
    return {n: losses["abc".index(n)] for n in order}


def mean(parts: list[list[Tensor]]) -> list[Tensor]:
    return [sum(p[t] for p in parts) / len(parts) for t in range(3)]


METHODS: list[Callable[[], Any]] = [
    GradNorm,
    GradVac,
    MoCo,
    lambda: DWA(window=1),
    lambda: FixedWeights({"c": 3.0, "a": 1.0, "b": 2.0}),
]


def check_orders_and_missing_names() -> None:
    """Over ranks as in one process, with a resume in between."""
    world = dist.get_world_size()
    for make in METHODS:
        model, expected = fresh(), fresh()
        run, optimizer = ddp(model, make())
        plain = reference(expected, make())
        for batch, order in zip(batches(5), ("abc", "cab", "ca", "b", "bca"), strict=True):
            report = optimizer.backward(named(run(own(batch)), order))
            with alone():
                losses = mean([expected(part) for part in batch.chunk(world)])
                wanted = plain.backward(named(losses, order))
            same_reports(report, wanted)
            assert report.tasks == tuple(order)
            same_params(model, expected)
            advance(optimizer, plain)
            saved = copy.deepcopy(optimizer.state_dict())
            run, optimizer = ddp(model, make())
            optimizer.load_state_dict(saved)


def check_accumulation_in_any_order() -> None:
    world = dist.get_world_size()
    model, expected = fresh(), fresh()
    run, optimizer = ddp(model, GradNorm())
    plain = reference(expected, GradNorm())
    for batch, other in zip(batches(3), ("cab", "bca", "acb"), strict=True):
        for part, order in zip(own(batch).chunk(2), ("abc", other), strict=True):
            optimizer.backward(named(run(part), order), accumulate=True)
        report = optimizer.combine()
        with alone():
            halves = [part for rank in batch.chunk(world) for part in rank.chunk(2)]
            losses = [2 * loss for loss in mean([expected(part) for part in halves])]
            wanted = plain.backward(named(losses, "abc"))
        same_reports(report, wanted)
        same_params(model, expected)
        advance(optimizer, plain)
