"""Scenarios of ranks that lack a task, or have other heads than the others."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from dist_harness import alone
from dist_models import (
    advance,
    batches,
    ddp,
    fresh,
    own,
    reference,
    same_params,
    same_reports,
    sgd,
    whole,
)
from torch import Tensor

from mtlkernels import (
    MTLOptimizer,
    Status,
    UPGrad,
)

WORLDS = (2, 4)


def check_a_task_that_a_rank_lacks() -> None:
    """Task 1 on rank 0 only, then on the last rank only, then nowhere, then everywhere."""
    model, expected = fresh(), fresh()
    run, optimizer = ddp(model, UPGrad())
    plain = reference(expected, UPGrad())
    world, rank = dist.get_world_size(), dist.get_rank()
    for batch, has in zip(batches(4), ([0], [world - 1], [], range(world)), strict=True):
        mine = run(own(batch))
        report = optimizer.backward([mine[0], mine[1] if rank in has else None, mine[2]])
        parts = [expected(part) for part in batch.chunk(world)]
        sums = [
            sum(part[t] for r, part in enumerate(parts) if t != 1 or r in has) for t in range(3)
        ]
        losses = [s / world for s in sums] if has else [sums[0] / world, sums[2] / world]
        with alone():
            wanted = plain.backward(losses)
        if has:
            same_reports(report, wanted)
        else:
            assert report.status.tolist() == [0, Status.ZERO_GRADIENT, 0]
            assert all(p.grad is None for p in model.heads[1].parameters())
        same_params(model, expected)
        advance(optimizer, plain)


def check_a_rank_without_any_task() -> None:
    model, expected = fresh(), fresh()
    optimizer = MTLOptimizer(sgd(model), UPGrad(), process_group=dist.group.WORLD)
    (batch,) = batches(1)
    first = batch.chunk(dist.get_world_size())[0]
    mine = model(first) if dist.get_rank() == 0 else [None] * 3
    report = optimizer.backward(mine)
    with alone():
        losses = [loss / dist.get_world_size() for loss in expected(first)]
        same_reports(report, reference(expected, UPGrad()).backward(losses))
    same_params(model, expected)


def check_another_head_on_each_rank() -> None:
    """What is a head to each rank is shared by two of them: all have to know."""
    world, rank = dist.get_world_size(), dist.get_rank()
    expected, model = fresh(), fresh()
    optimizer = MTLOptimizer(sgd(model), UPGrad(), process_group=dist.group.WORLD)

    def losses(one: Any, x: Tensor, r: int) -> list[Tensor]:
        z = one.features(x)
        first, second = (0, 1) if r == 0 else (1, 0)
        return [one.heads[first](z).square().mean(), (one.heads[second](z) - 1).square().mean()]

    (batch,) = batches(1)
    report = optimizer.backward(losses(model, own(batch), rank))
    parts = [losses(expected, part, r) for r, part in enumerate(batch.chunk(world))]
    with alone():
        wanted = reference(expected, UPGrad()).backward(
            [sum(part[t] for part in parts) / world for t in range(2)]
        )
    same_reports(report, wanted)
    same_params(model, expected)
    assert not torch.equal(whole(model.heads[0].weight.grad), torch.zeros(2, 4).double())
