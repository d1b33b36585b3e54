"""Scenarios of a loss that balances itself: its backward pass holds the step's collectives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from dist_harness import DEVICE, alone, only
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
    told,
)
from dist_sharded import Heads, losses, pair, sharded
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from mtlkernels import FAMO, CAGrad, GradDrop, MTLOptimizer, NashMTL, PCGrad, UPGrad

WORLDS = (2,)


def _follow(run: Any, model: nn.Module, optimizer: Any, expected: Any, whole: Any) -> None:
    """Steps of the ranks, of a loss that is scaled, beside those of one process."""
    of = (lambda m, x: m(x)) if run is not None else losses
    run = model if run is None else run
    for batch in batches():
        (optimizer.loss(of(run, own(batch))) * 8 / 2).backward()
        with alone():
            wanted = whole.backward(of(expected, batch), scaler=torch.tensor(4.0))
        same_reports(optimizer.report, wanted)
        same_params(model, expected)
        advance(optimizer, whole)


def check_replicas() -> None:
    for method in (PCGrad(seed=2), NashMTL(), GradDrop(), FAMO()):
        model, expected = fresh(), fresh()
        run, optimizer = ddp(model, method)
        _follow(run, model, optimizer, expected, reference(expected, method))


def check_replicas_with_weights_that_are_kept() -> None:
    for options in ({"every": 2}, {"collect": "batched"}):
        model, expected = fresh(), fresh()
        run, optimizer = ddp(model, CAGrad(), **options)
        _follow(run, model, optimizer, expected, reference(expected, CAGrad(), **options))


def check_a_trainer_that_wraps_the_model_itself() -> None:
    """It returns no DistributedDataParallel before the optimizer is made: the group is enough."""
    for method in (PCGrad(seed=2), FAMO()):
        model, expected = fresh(), fresh()
        optimizer = MTLOptimizer(sgd(model), method, process_group=dist.group.WORLD)
        run = DistributedDataParallel(model)
        _follow(run, model, optimizer, expected, reference(expected, method))


def check_a_penalty_is_refused_where_ddp_would_overwrite_the_direction() -> None:
    model = fresh()
    run, optimizer = ddp(model, UPGrad())
    for penalty in (
        lambda z: sum(p.square().sum() for p in model.trunk.parameters()),
        lambda z: z[0],
    ):
        with run.no_sync():
            found = run(own(batches()[0]))
        told(
            NotImplementedError,
            "add the penalty",
            (optimizer.loss(found) + penalty(found)).backward,
        )
        model.zero_grad()


def check_replicas_that_accumulate() -> None:
    model, expected = fresh(), fresh()
    run, optimizer = ddp(model, NashMTL(), accumulate=2)
    whole = reference(expected, NashMTL())
    first, second = batches(2)
    for _ in range(2):
        for batch in (first, second):
            (optimizer.loss(run(own(batch))) / 2).backward()
        with alone():
            whole.backward(expected(torch.cat([first, second])))
        same_params(model, expected)
        advance(optimizer, whole)


@only(2, 4)
def check_fsdp2() -> None:
    for method in (UPGrad(), PCGrad(seed=2), FAMO()):
        model, expected = sharded(), fresh(Heads)
        _follow(None, model, *_second(method, model, expected))


def _second(method: Any, model: nn.Module, expected: nn.Module, **options: Any) -> Any:
    optimizer, whole = pair(method, model, expected, **options)
    return optimizer, expected, whole


def check_fsdp2_reduces_a_penalty() -> None:
    model, expected = sharded(), fresh(Heads)
    optimizer, whole = pair(UPGrad(), model, expected)
    for batch in batches():
        found = losses(model, own(batch))
        (optimizer.loss(found) + 3 * found[0]).backward()
        with alone():
            wanted = losses(expected, batch)
            whole.backward(wanted, retain_graph=True)
        (3 * wanted[0]).backward()
        same_params(model, expected)
        advance(optimizer, whole)


def check_fsdp2_that_accumulates() -> None:
    model, expected = sharded(), fresh(Heads)
    optimizer, whole = pair(UPGrad(), model, expected)
    first, second = batches(2)
    for batch in (first, second):
        (optimizer.loss(losses(model, own(batch)), accumulate=2) / 2).backward()
    with alone():
        whole.backward(losses(expected, torch.cat([first, second])))
    same_params(model, expected)


@only(4)
def check_hsdp() -> None:
    mesh = init_device_mesh(DEVICE, (2, 2), mesh_dim_names=("replicate", "shard"))
    model, expected = sharded(mesh=mesh), fresh(Heads)
    _follow(None, model, *_second(UPGrad(), model, expected))


def check_factors_that_differ_between_ranks_reach_grad_as_nan() -> None:
    model = fresh()
    run, optimizer = ddp(model, UPGrad())
    (optimizer.loss(run(own(batches()[0]))) * (1 + dist.get_rank())).backward()
    assert all(param.grad.isnan().all() for param in model.trunk.parameters())


def check_an_exception_ends_the_step_of_all_ranks() -> None:
    model = fresh()
    run, optimizer = ddp(model, UPGrad())
    loss = optimizer.loss(run(own(batches()[0])))
    for param in model.trunk.parameters():
        param.requires_grad_(dist.get_rank() == 0)
    with pytest.raises((RuntimeError, ValueError)):
        loss.backward()
    assert all(param.grad is None for param in model.parameters())


def check_without_module_a_sentence_asks_for_it() -> None:
    model = fresh()
    optimizer = MTLOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), UPGrad())
    told(NotImplementedError, "module=", optimizer.loss(model(own(batches()[0]))).backward)
