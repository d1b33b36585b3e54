"""Scenarios of a frozen trunk: heads get the mean over the ranks, and the method is not asked."""

from __future__ import annotations

import warnings
from typing import Any

import torch
import torch.distributed as dist
from dist_harness import alone
from dist_models import (
    batches,
    ddp,
    follow,
    fresh,
    own,
    reference,
    same_params,
    sgd,
    told,
)
from dist_sharded import Heads, Losses, losses, pair, sharded

from mtlkernels import (
    FAMO,
    GradDrop,
    MTLOptimizer,
    PCGrad,
    PerPart,
    UPGrad,
)

WORLDS = (2,)


def _frozen(dtype: torch.dtype = torch.float64) -> Any:
    model = fresh(dtype=dtype)
    model.trunk.requires_grad_(False)
    return model


def _steps(method: Any, **options: Any) -> None:
    model, expected = _frozen(), _frozen()
    choices: list[dict[str, Any]] = []
    for one in (model, expected):
        trunk = list(one.trunk.parameters())
        named = {k: trunk for k in ("shared", "measure") if k in options}
        parts = {"parts": [trunk[:2], trunk[2:]]} if "parts" in options else {}
        choices.append({**options, **named, **parts})
    run, optimizer = ddp(model, method, **choices[0])
    follow(model, run, optimizer, expected, reference(expected, method, **choices[1]), batches())


def check_replicas_with_a_frozen_trunk() -> None:
    for method in (UPGrad(), PCGrad(seed=1), GradDrop(), FAMO()):
        _steps(method)
    for options in (
        {"weight_heads": True},
        {"collect": "batched"},
        {"shared": True},
        {"every": 2},
        {"measure": True},
    ):
        _steps(UPGrad(), **options)
    _steps(PerPart(UPGrad()), parts=True)


def check_a_frozen_trunk_and_features() -> None:
    model, expected = _frozen(), _frozen()
    optimizer = MTLOptimizer(sgd(model), UPGrad(), process_group=dist.group.WORLD)
    (batch,) = batches(1)
    mine = own(batch)
    z = model.features(mine)
    report = optimizer.backward(model.losses(z, mine), features=z)
    assert "heads alone" in report.collected
    sum(expected(batch)).backward()
    same_params(model, expected)


def check_a_rank_whose_trunk_is_frozen() -> None:
    """What one rank alone reaches is shared all the same."""
    model, expected = fresh(), fresh()
    optimizer = MTLOptimizer(sgd(model), UPGrad(), process_group=dist.group.WORLD)
    (batch,) = batches(1)
    parts = batch.chunk(2)
    z = model.features(own(batch))
    given = z.detach() if dist.get_rank() == 1 else z
    optimizer.backward(model.losses(given, own(batch)))
    first, second = (expected.features(part) for part in parts)
    pairs = zip(
        expected.losses(first, parts[0]), expected.losses(second.detach(), parts[1]), strict=True
    )
    with alone():
        reference(expected, UPGrad()).backward([(a + b) / 2 for a, b in pairs])
    same_params(model, expected)


def check_nothing_that_any_rank_reaches() -> None:
    model = fresh()
    other = torch.nn.Parameter(torch.ones(2, dtype=torch.float64))
    base = torch.optim.SGD([other], lr=0.1)
    optimizer = MTLOptimizer(base, UPGrad(), process_group=dist.group.WORLD)
    (batch,) = batches(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of parameters that the optimizer does not hold
        told(ValueError, "no loss reaches any", lambda: optimizer.backward(model(own(batch))))


def check_a_frozen_trunk_of_fully_shard() -> None:
    model, expected = sharded(), fresh(Heads)
    for one in (model, expected):
        one.trunk.requires_grad_(False)
    optimizer, plain = pair(UPGrad(), model, expected)
    run = Losses(expected, losses)
    follow(model, lambda x: losses(model, x), optimizer, run, plain, batches())
