"""Scenarios of replicated parameters: each beside one process with the whole batch."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.distributed as dist
from dist_harness import alone, only
from dist_models import (
    Model,
    Scalar,
    advance,
    batches,
    ddp,
    follow,
    fresh,
    own,
    reference,
    same_params,
    same_reports,
    sgd,
    whole,
)
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mtlkernels import (
    FAMO,
    SI,
    UW,
    CAGrad,
    ExcessMTL,
    GradDrop,
    Mean,
    MoCo,
    MTLOptimizer,
    NashMTL,
    PCGrad,
    PerPart,
    TrimmedMean,
    UPGrad,
)

WORLDS = (2, 4)


def _steps(method: Any, make: Any = Model, parts: bool = False, **options: Any) -> None:
    model, expected = fresh(make), fresh(make)

    def named(one: nn.Module) -> dict[str, Any]:
        return {"parts": [[*one.trunk[i].parameters()] for i in (0, 2)]} if parts else {}

    run, optimizer = ddp(model, method, **options, **named(model))
    plain = reference(expected, method, **options, **named(expected))
    follow(model, run, optimizer, expected, plain, batches())


@only(1, 2, 4)
def check_gram_methods() -> None:
    for method in (PCGrad(seed=3), CAGrad(), UPGrad(), NashMTL(), Mean()):
        _steps(method)


@only(1, 2, 4)
def check_options() -> None:
    _steps(PCGrad(), weight_heads=True)
    _steps(UPGrad(), collect="batched")
    _steps(PerPart(UPGrad()), parts=True)
    _steps(UPGrad(), parts=True, weight_heads=True)


def check_named_parameters() -> None:
    """Those that are not named count as heads, although all tasks reach them."""
    for options in ({}, {"weight_heads": True}):
        model, expected = fresh(), fresh()
        run, optimizer = ddp(model, UPGrad(), shared=model.trunk[2].parameters(), **options)
        plain = reference(expected, UPGrad(), shared=expected.trunk[2].parameters(), **options)
        follow(model, run, optimizer, expected, plain, batches())


def check_fewer_numbers_than_ranks() -> None:
    _steps(CAGrad(), Scalar)


def check_a_group_in_place_of_ddp() -> None:
    model, expected = fresh(), fresh()
    optimizer = MTLOptimizer(sgd(model), CAGrad(), process_group=dist.group.WORLD)
    follow(model, model, optimizer, expected, reference(expected, CAGrad()), batches())


@only(2)
def check_grads_add_up() -> None:
    model, expected = fresh(), fresh()
    run, optimizer = ddp(model, UPGrad())
    plain = reference(expected, UPGrad())
    for batch in batches(2):
        optimizer.backward(run(own(batch)))
        with alone():
            plain.backward(expected(batch))
    same_params(model, expected)
    assert model.trunk[0].weight.grad._mtl_flat is model.trunk[2].weight.grad._mtl_flat


@only(2)
def check_losses_as_one_tensor() -> None:
    model, expected = fresh(), fresh()
    run, optimizer = ddp(model, UPGrad())
    (batch,) = batches(1)
    report = optimizer.backward(torch.stack(run(own(batch))))
    with alone():
        same_reports(report, reference(expected, UPGrad()).backward(expected(batch)))
    same_params(model, expected)


@only(2)
def check_loss_methods() -> None:
    for method in (SI(), FAMO()):
        _steps(method)
    model, expected = fresh(), fresh()
    pairs = []
    for one in (model, expected):
        method = UW(3).double()
        base = torch.optim.SGD([*one.parameters(), *method.parameters()], lr=0.1)
        pairs.append((method, base))
    run = DistributedDataParallel(model)
    optimizer = MTLOptimizer(pairs[0][1], pairs[0][0], module=run)
    plain = MTLOptimizer(pairs[1][1], pairs[1][0])
    follow(model, run, optimizer, expected, plain, batches())
    for mine, wanted in zip(pairs[0][0].parameters(), pairs[1][0].parameters(), strict=True):
        torch.testing.assert_close(mine, wanted)
        assert not torch.equal(mine.detach(), torch.zeros_like(mine))


@only(2)
def check_row_methods() -> None:
    for method in (GradDrop(seed=5), TrimmedMean(), MoCo(), ExcessMTL()):
        _steps(method)


@only(1, 2, 4)
def check_kept_weights() -> None:
    model, expected = fresh(), fresh()
    run, optimizer = ddp(model, UPGrad(), every=3)
    follow(model, run, optimizer, expected, reference(expected, UPGrad(), every=3), batches(5))


@only(1, 2, 4)
def check_features() -> None:
    """The last batch with a task that only rank 0 has."""
    model, expected = fresh(), fresh()
    optimizer = MTLOptimizer(sgd(model), UPGrad(), process_group=dist.group.WORLD)
    plain = reference(expected, UPGrad())
    world, rank = dist.get_world_size(), dist.get_rank()
    for step, batch in enumerate(batches()):
        z = model.features(own(batch))
        mine: list[Tensor | None] = model.losses(z, own(batch))
        if step == 2 and rank > 0:
            mine[1] = None
        report = optimizer.backward(mine, features=z)
        with alone():
            z = expected.features(batch)
            wanted = expected.losses(z, batch)
            if step == 2:
                first = slice(len(batch) // world)
                wanted[1] = expected.losses(z[first], batch[first])[1] / world
            same_reports(report, plain.backward(wanted, features=z))
        same_params(model, expected)
        advance(optimizer, plain)


def check_measured_on_some_parameters() -> None:
    model, expected = fresh(), fresh()
    run, optimizer = ddp(model, UPGrad(), measure=model.trunk[2].parameters())
    plain = reference(expected, UPGrad(), measure=expected.trunk[2].parameters())
    follow(model, run, optimizer, expected, plain, batches())


@only(2)
def check_micro_batches() -> None:
    for method, options in (
        (UPGrad(), {}),
        (PCGrad(), {"weight_heads": True}),
        (TrimmedMean(), {}),
    ):
        model, expected = fresh(), fresh()
        run, optimizer = ddp(model, method, **options)
        plain = reference(expected, method, **options)
        for batch in batches(2):
            for part in own(batch).chunk(2):
                assert optimizer.backward([x / 2 for x in run(part)], accumulate=True) is None
            with alone():
                same_reports(optimizer.combine(), plain.backward(expected(batch)))
            same_params(model, expected)
            advance(optimizer, plain)


@only(2)
def check_what_came_before_is_kept_in_a_copy() -> None:
    model = fresh()
    run, optimizer = ddp(model, UPGrad())
    other = copy.deepcopy(optimizer)
    assert other._mtl.ranks is optimizer._mtl.ranks
    optimizer.backward(run(own(batches(1)[0])))
    assert whole(model.trunk[0].weight.grad).isfinite().all()
