"""Scenarios of tasks that no rank has in a step, and of ranks that do not take one at all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from dist_harness import DEVICE, alone
from dist_models import (
    advance,
    batches,
    ddp,
    fresh,
    own,
    reference,
    same_params,
    sgd,
    told,
)
from dist_sharded import Wide, cut, losses, pair, sharded
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from mtlkernels import (
    FAMO,
    SI,
    GradDrop,
    GradNorm,
    MoCo,
    MTLOptimizer,
    PCGrad,
    Reused,
    Status,
    UPGrad,
)

WORLDS = (2,)
METHODS: list[Callable[[], Any]] = [
    *(UPGrad, PCGrad, GradNorm, GradDrop, MoCo, SI, FAMO),
    lambda: Reused(UPGrad(), 2),
]
# Which tasks have data in a step: all, two in another order of absence, one.
STEPS = [(0, 1, 2), (0, 2), (1,), (1, 2), (0, 1, 2)]


def _given(found: list[Tensor], here: Any, named: bool) -> Any:
    values = [loss if t in here else None for t, loss in enumerate(found)]
    return dict(zip("abc", values, strict=True)) if named else values


def _same(report: Any, wanted: Any) -> None:
    """The reports, but for the flag of an absent task."""
    torch.testing.assert_close(report.losses, wanted.losses)
    for name in ("gram", "weights"):
        have, want = getattr(report, name), getattr(wanted, name)
        assert (have is None) == (want is None)
        if have is not None:
            torch.testing.assert_close(have, want)


def check_replicas_with_tasks_that_no_rank_has() -> None:
    for make in METHODS:
        model, expected, method = fresh(), fresh(), make()
        run, optimizer = ddp(model, method)
        plain = reference(expected, method)
        named = not isinstance(method, PCGrad)
        for batch, here in zip(batches(len(STEPS)), STEPS, strict=True):
            report = optimizer.backward(_given(run(own(batch)), here, named))
            with alone():
                wanted = plain.backward(_given(expected(batch), here, named))
            _same(report, wanted)
            same_params(model, expected)
            advance(optimizer, plain)
        a, b = optimizer.method.state_dict(), plain.method.state_dict()
        for key, value in a.items():
            torch.testing.assert_close(value, b[key], equal_nan=True)


def check_other_ways_of_a_step() -> None:
    for options in (
        {"weight_heads": True},
        {"collect": "batched"},
        {"measure": True},
    ):
        model, expected = fresh(), fresh()
        choices = [
            {"measure": list(one.trunk[2].parameters())} if "measure" in options else options
            for one in (model, expected)
        ]
        run, optimizer = ddp(model, UPGrad(), **choices[0])
        plain = reference(expected, UPGrad(), **choices[1])
        for batch, here in zip(batches(3), STEPS[1:4], strict=True):
            optimizer.backward(_given(run(own(batch)), here, True))
            with alone():
                plain.backward(_given(expected(batch), here, True))
            same_params(model, expected)
            advance(optimizer, plain)


def check_micro_batches() -> None:
    """Each has other tasks, and so has each rank; task 2 has none at all."""
    model, expected = fresh(), fresh()
    run, optimizer = ddp(model, UPGrad())
    plain = reference(expected, UPGrad())
    first, second = batches(2)
    rank = dist.get_rank()
    optimizer.backward(_given(run(own(first)), (0,), False), accumulate=True)
    optimizer.backward(_given(run(own(second)), (0, 1) if rank else (0,), False), accumulate=True)
    report = optimizer.combine()
    half = expected(second.chunk(2)[1])[1] / 2
    with alone():
        zero = expected(first)[0] + expected(second)[0]
        plain.backward([zero, half, None])
    same_params(model, expected)
    assert report.status.tolist() == [0, 0, Status.ZERO_GRADIENT]


def check_two_tasks_of_which_one_is_left() -> None:
    """It is plain training, also where the ranks have learnt their method."""
    model, expected = fresh(), fresh()
    optimizer = MTLOptimizer(sgd(model), UPGrad(), process_group=dist.group.WORLD)
    (batch,) = batches(1)
    report = optimizer.backward([model(own(batch))[0], None])
    expected(batch)[0].backward()
    same_params(model, expected)
    assert report.weights.tolist() == [1, 0]


def check_no_loss_on_any_rank() -> None:
    model = fresh()
    optimizer = MTLOptimizer(sgd(model), UPGrad(), process_group=dist.group.WORLD)
    told(ValueError, "all 3 losses are None on all ranks", lambda: optimizer.backward([None] * 3))
    (batch,) = batches(1)
    optimizer.backward(model(own(batch)))  # and the ranks still meet


def check_a_rank_that_does_not_take_the_step_ends_it_for_all() -> None:
    """Another number of tasks, none at all, a loss without a graph: never a rank that waits."""
    rank = dist.get_rank()
    model = fresh()
    optimizer = MTLOptimizer(sgd(model), UPGrad(), process_group=dist.group.WORLD)
    (batch,) = batches(1)
    wrong: list[tuple[Callable[[list[Tensor]], Any], str]] = [
        (lambda found: found[:2], "differs from rank 0 in its losses"),
        (lambda found: [], "does not take this step: ValueError: no losses"),
        (lambda found: [*found[:2], found[2].detach()], "has no graph"),
        (lambda found: [*found[:2], "depth"], "is a str"),
    ]
    for change, word in wrong:
        found = model(own(batch))
        given = change(found) if rank == 1 else found
        error = (ValueError, RuntimeError, TypeError)
        if rank == 0 or ("losses" in word and "step" not in word):
            told(error, word, lambda given=given: optimizer.backward(given))
        else:
            told(error, word.rpartition(": ")[2], lambda given=given: optimizer.backward(given))
        assert all(p.grad is None for p in model.parameters())
        optimizer.backward(model(own(batch)))  # the next one is fine
        optimizer.zero_grad()


def check_a_rank_of_fully_shard_that_does_not_take_the_first_step() -> None:
    rank = dist.get_rank()
    (batch,) = batches(1)
    for change, word in (
        (lambda found: found[:2], "in its losses"),
        (lambda found: [*found[:2], None], "a loss is None"),
    ):
        model = sharded()
        optimizer = MTLOptimizer(sgd(model), UPGrad(), module=model)
        found = losses(model, own(batch))
        given = change(found) if rank == 1 else found
        told((ValueError, RuntimeError), word, lambda o=optimizer, g=given: o.backward(g))


def check_pieces_of_tensor_parallelism() -> None:
    mesh = init_device_mesh(DEVICE, (2,))
    for make in (UPGrad, SI, GradNorm):
        model, expected = cut(fresh(Wide), mesh), fresh(Wide)
        optimizer, plain = pair(make(), model, expected)
        for batch, here in zip(batches(len(STEPS)), STEPS, strict=True):
            optimizer.backward(_given(losses(model, batch), here, True))
            with alone():
                plain.backward(_given(losses(expected, batch), here, True))
            same_params(model, expected)
            advance(optimizer, plain)
        for batch, here in zip(batches(2), ((0,), (0, 2)), strict=True):
            if make is SI:
                break
            optimizer.backward(_given(losses(model, batch), here, True), accumulate=True)
            with alone():
                plain.backward(_given(losses(expected, batch), here, True), accumulate=True)
        else:
            optimizer.combine()
            with alone():
                plain.combine()
            same_params(model, expected)
