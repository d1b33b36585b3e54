"""Scenarios of FSDP2 and HSDP: each beside one process with the whole batch."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.distributed as dist
from dist_harness import DEVICE, alone, only
from dist_models import (
    Scalar,
    advance,
    batches,
    follow,
    fresh,
    own,
    reference,
    same_params,
    same_reports,
    sgd,
    told,
    whole,
)
from dist_sharded import (
    Heads,
    Losses,
    Wide,
    WithFeatures,
    cut,
    losses,
    pair,
    same_batch,
    sharded,
    steps,
)
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from mtlkernels import (
    SI,
    UW,
    CAGrad,
    MTLOptimizer,
    NashMTL,
    PCGrad,
    PerPart,
    Status,
    UPGrad,
)

WORLDS = (2, 4)


@only(1, 2, 4)
def check_fsdp2_both_ways_of_resharding() -> None:
    for reshard in (True, False):
        for method in (UPGrad(), PCGrad(seed=2)):
            steps(sharded(reshard_after_forward=reshard), method)


@only(2)
def check_float32_to_its_rounding() -> None:
    model, expected = sharded(dtype=torch.float32), fresh(Heads, torch.float32)
    optimizer, plain = pair(UPGrad(), model, expected)
    run, data = Losses(expected, losses), batches(dtype=torch.float32)
    bounds = {"rtol": 1e-6, "atol": 1e-6}
    follow(model, lambda x: losses(model, x), optimizer, run, plain, data, **bounds)


@only(2)
def check_options() -> None:
    steps(sharded(), UPGrad(), weight_heads=True)
    steps(sharded(), NashMTL())
    model, expected = sharded(), fresh(Heads)
    method = PerPart(UPGrad())
    optimizer, plain = (
        MTLOptimizer(
            sgd(one),
            copy.deepcopy(method),
            parts=[list(one.trunk[0].parameters()), list(one.trunk[2].parameters())],
            **({"module": one} if one is model else {}),
        )
        for one in (model, expected)
    )
    data = batches()
    follow(model, lambda x: losses(model, x), optimizer, Losses(expected, losses), plain, data)


@only(2)
def check_gradients_are_dtensors() -> None:
    model = sharded()
    optimizer = MTLOptimizer(sgd(model), UPGrad(), module=model)
    optimizer.backward(losses(model, own(batches(1)[0])))
    for param in model.parameters():
        assert isinstance(param.grad, DTensor)
        assert param.grad.placements == param.placements
        assert param.grad.shape == param.shape
        assert param.grad.to_local().shape == param.to_local().shape


@only(2)
def check_gradients_add_up() -> None:
    model, expected = sharded(), fresh(Heads)
    optimizer, plain = pair(UPGrad(), model, expected)
    for batch in batches(2):
        optimizer.backward(losses(model, own(batch)))
        with alone():
            plain.backward(losses(expected, batch))
    same_params(model, expected)


def check_fewer_numbers_than_ranks() -> None:
    def scalar(model: nn.Module, x: Tensor) -> list[Tensor]:
        return [(model(x) - 1).square().mean(), (model(x) + x + 2).square().mean()]

    class Scaled(Scalar):
        def forward(self, x: Tensor) -> Tensor:
            return self.w * x

    steps(sharded(Scaled), CAGrad(), of=scalar, make=Scaled)


@only(2)
def check_loss_methods() -> None:
    steps(sharded(), SI())
    model, expected = sharded(), fresh(Heads)
    methods = [UW(3).double(), UW(3).double()]
    bases = [
        torch.optim.SGD([*one.parameters(), *method.parameters()], lr=0.1, foreach=False)
        for one, method in zip((model, expected), methods, strict=True)
    ]
    optimizer = MTLOptimizer(bases[0], methods[0], module=model)
    plain = MTLOptimizer(bases[1], methods[1])
    data = batches()
    follow(model, lambda x: losses(model, x), optimizer, Losses(expected, losses), plain, data)
    for mine, wanted in zip(methods[0].parameters(), methods[1].parameters(), strict=True):
        torch.testing.assert_close(mine, wanted)


@only(2)
def check_kept_weights() -> None:
    """One backward in two steps of three, with a scale that the weights do not see."""
    model, expected = sharded(), fresh(Heads)
    options = {"every": 3, "weight_heads": True}
    optimizer, plain = pair(UPGrad(), model, expected, **options)
    run = Losses(expected, losses)
    follow(model, lambda x: losses(model, x), optimizer, run, plain, batches(5))
    (batch,) = batches(1)
    optimizer.backward(losses(model, own(batch)), scaler=torch.tensor(4.0))
    with alone():
        plain.backward(losses(expected, batch), scaler=torch.tensor(4.0))
    same_params(model, expected)
    mesh = init_device_mesh(DEVICE, (dist.get_world_size(),))
    model, expected = cut(fresh(Wide), mesh), fresh(Wide)
    base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, foreach=False)
    optimizer = MTLOptimizer(base, UPGrad(), module=model, **options)
    plain, run = reference(expected, UPGrad(), **options), Losses(expected, losses)
    follow(model, lambda x: losses(model, x), optimizer, run, plain, batches(), same_batch)


def _with_features(model: nn.Module, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    z, answers = model(x)
    aims = [x[:, :2] * (t + 1) - t for t in range(3)]
    return z, [(y - a).square().mean() + 0.1 for y, a in zip(answers, aims, strict=True)]


def _feature_steps(model: nn.Module, **options: Any) -> None:
    expected = fresh(WithFeatures)
    optimizer, plain = pair(UPGrad(), model, expected, **options)
    for batch in batches():
        z, mine = _with_features(model, own(batch))
        report = optimizer.backward(mine, features=z)
        with alone():
            z, wanted = _with_features(expected, batch)
            same_reports(report, plain.backward(wanted, features=z))
        same_params(model, expected)
        advance(optimizer, plain)


@only(2)
def check_features() -> None:
    for reshard in (True, False):
        for options in ({}, {"weight_heads": True}):
            model = sharded(WithFeatures, reshard_after_forward=reshard)
            _feature_steps(model, **options)
    model = sharded(WithFeatures)
    optimizer = MTLOptimizer(sgd(model), UPGrad(), module=model)
    _, mine = _with_features(model, own(batches(1)[0]))
    unused = torch.ones(2, requires_grad=True) * 2
    told(ValueError, "what the heads read", lambda: optimizer.backward(mine, features=unused))


@only(2)
def check_micro_batches() -> None:
    model, expected = sharded(), fresh(Heads)
    optimizer, plain = pair(UPGrad(), model, expected)
    (batch,) = batches(1)
    for part in own(batch).chunk(2):
        optimizer.backward([loss / 2 for loss in losses(model, part)], accumulate=True)
    assert all(param.grad is None for param in model.parameters())
    with alone():
        same_reports(optimizer.combine(), plain.backward(losses(expected, batch)))
    same_params(model, expected)


@only(2)
def check_scaler_skips_everywhere() -> None:
    model = sharded()
    optimizer = MTLOptimizer(sgd(model), UPGrad(), module=model)
    scaler = torch.amp.GradScaler(DEVICE, init_scale=8.0)
    for step, batch in enumerate(batches(2)):
        before = whole(model.trunk[0].weight.detach()).clone()
        mine = losses(model, own(batch))
        if step == 0 and dist.get_rank() == 1:
            mine[2] = mine[2] * float("inf")
        report = optimizer.backward(mine, scaler=scaler)
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        assert torch.equal(before, whole(model.trunk[0].weight.detach())) == (step == 0)
        assert scaler.get_scale() == 4.0
        assert (report.status.tolist() == [0, 0, 0]) == (step == 1)


@only(2)
def check_nan_on_one_rank_and_task() -> None:
    model = sharded()
    optimizer = MTLOptimizer(sgd(model), UPGrad(), module=model)
    mine = losses(model, own(batches(1)[0]))
    if dist.get_rank() == 1:
        mine[1] = mine[1] * float("nan")
    report = optimizer.backward(mine)
    assert report.status[1] & Status.NON_FINITE
    assert all(whole(param.grad).isnan().all() for param in model.trunk.parameters())


@only(2)
def check_mixed_precision_policy() -> None:
    """Against the rows that one backward each of the same model leaves."""
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)

    def make() -> nn.Module:
        torch.manual_seed(0)
        return fully_shard(Heads(), mp_policy=policy)

    (batch,) = batches(1, torch.float32)
    rows = []
    for t in range(3):
        model = make()
        losses(model, own(batch))[t].float().backward()
        grads = [whole(param.grad) for param in model.trunk.parameters()]
        rows.append(torch.cat([g.flatten() for g in grads]).double())
    model = make()
    optimizer = MTLOptimizer(sgd(model), UPGrad(), module=model)
    report = optimizer.backward([loss.float() for loss in losses(model, own(batch))])
    assert all(param.grad.dtype == torch.float32 for param in model.parameters())
    gram = torch.stack(rows) @ torch.stack(rows).T
    torch.testing.assert_close(report.gram, gram, rtol=1e-5, atol=1e-7)
    direction = torch.cat([whole(param.grad).flatten() for param in model.trunk.parameters()])
    torch.testing.assert_close(
        direction.double(), report.weights @ torch.stack(rows), rtol=1e-5, atol=1e-6
    )


@only(2)
def check_the_next_forward_sees_the_step() -> None:
    """And an error in the middle leaves a model that works."""
    for reshard in (True, False):
        model, expected = sharded(reshard_after_forward=reshard), fresh(Heads)
        optimizer, plain = pair(UPGrad(), model, expected)
        (batch,) = batches(1)
        broken = losses(model, own(batch))
        broken[1].register_hook(_raise)
        with pytest.raises(ArithmeticError, match="on purpose"):
            optimizer.backward(broken)
        assert all(param.grad is None for param in model.parameters())
        with torch.no_grad():
            for group in optimizer.param_groups:
                for param in group["params"]:
                    param.to_local().mul_(0.5)
            for param in expected.parameters():
                param.mul_(0.5)
        same_params(model, expected)
        for one, run in ((optimizer, model), (plain, expected)):
            with alone():
                one.backward(losses(run, own(batch) if run is model else batch))
            one.step()
        with torch.no_grad():
            for mine, wanted in zip(model(batch), expected(batch), strict=True):
                torch.testing.assert_close(mine, wanted)


def _raise(grad: Tensor) -> Tensor:
    raise ArithmeticError("on purpose")


@only(4)
def check_hsdp() -> None:
    mesh = init_device_mesh(DEVICE, (2, 2), mesh_dim_names=("replicate", "shard"))
    steps(sharded(mesh=mesh), UPGrad())
    _feature_steps(sharded(WithFeatures, mesh=mesh))
