"""The optimizer contract: schedulers, scalers, hooks, closures and averages around the step."""

from __future__ import annotations

import copy

import pytest
import torch
from contract import BASES, Net, assert_same, batches, pair, train
from torch import Tensor
from torch.optim import lr_scheduler, swa_utils
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from mtlkernels import AvgNorm, Mean, MTLOptimizer, PCGrad

pytestmark = pytest.mark.usefixtures("one_thread")

every_base = pytest.mark.parametrize("base", BASES)

# ---------------------------------------------------------------------------------- schedulers


SCHEDULERS = {
    lr_scheduler.LambdaLR: lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 0.9**epoch),
    lr_scheduler.MultiplicativeLR: lambda o: lr_scheduler.MultiplicativeLR(o, lambda epoch: 0.9),
    lr_scheduler.StepLR: lambda o: lr_scheduler.StepLR(o, 2),
    lr_scheduler.MultiStepLR: lambda o: lr_scheduler.MultiStepLR(o, [1, 3]),
    lr_scheduler.ConstantLR: lambda o: lr_scheduler.ConstantLR(o, total_iters=2),
    lr_scheduler.LinearLR: lr_scheduler.LinearLR,
    lr_scheduler.ExponentialLR: lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    lr_scheduler.SequentialLR: lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o), lr_scheduler.ExponentialLR(o, 0.9)], [2]
    ),
    lr_scheduler.PolynomialLR: lr_scheduler.PolynomialLR,
    lr_scheduler.CosineAnnealingLR: lambda o: lr_scheduler.CosineAnnealingLR(o, 5),
    lr_scheduler.ChainedScheduler: lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o), lr_scheduler.ExponentialLR(o, 0.9)], o
    ),
    lr_scheduler.ReduceLROnPlateau: lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0),
    lr_scheduler.CyclicLR: lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, step_size_up=2),
    lr_scheduler.CosineAnnealingWarmRestarts: lambda o: lr_scheduler.CosineAnnealingWarmRestarts(
        o, 2
    ),
    lr_scheduler.OneCycleLR: lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=8),
    swa_utils.SWALR: lambda o: swa_utils.SWALR(o, 0.2, anneal_epochs=3),
}


def test_every_scheduler_of_torch_is_tried() -> None:
    known = {
        cls
        for cls in vars(lr_scheduler).values()
        if isinstance(cls, type) and issubclass(cls, lr_scheduler.LRScheduler)
    }
    assert known - {lr_scheduler.LRScheduler, lr_scheduler._LRScheduler} <= SCHEDULERS.keys()


@pytest.mark.parametrize("made", ["before", "after"])
@pytest.mark.parametrize("scheduler", SCHEDULERS, ids=lambda cls: cls.__name__)
def test_schedulers_drive_a_wrapped_optimizer(scheduler: type, made: str) -> None:
    runs = []
    for wrapped in (False, True):
        model = Net()
        optimizer = BASES["sgd"](model.parameters())
        if made == "before":
            schedule = SCHEDULERS[scheduler](optimizer)
        if wrapped:
            optimizer = MTLOptimizer(optimizer, Mean())
        if made == "after":
            schedule = SCHEDULERS[scheduler](optimizer)
        rates = []
        for x in batches(6):
            optimizer.zero_grad()
            loss = model(x)[0]
            optimizer.backward([loss]) if wrapped else loss.backward()
            optimizer.step()
            plateau = scheduler is lr_scheduler.ReduceLROnPlateau
            schedule.step(1.0) if plateau else schedule.step()
            rates.append((optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["momentum"]))
        runs.append((rates, model))
    assert runs[0][0] == runs[1][0]
    assert len(set(runs[0][0])) > 1
    assert_same(runs[0][1], runs[1][1])


# ------------------------------------------------------------------------------- mixed precision


@pytest.mark.parametrize("clip", [False, True])
@every_base
def test_grad_scaler_and_clipping_change_the_step_as_they_do_without_us(
    base: str, clip: bool
) -> None:
    """A scaler hands fused optimizers its scale: a step that ignores it is 1024 times as long."""
    model, optimizer = pair(base)
    twin, other = pair(base)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for x in batches(3):
        optimizer.zero_grad()
        optimizer.backward([scaler.scale(loss) for loss in model(x)])
        if clip:
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        scaler.step(optimizer)
        scaler.update()
        other.zero_grad()
        other.backward(twin(x))
        if clip:
            norm = torch.nn.utils.clip_grad_norm_(twin.parameters(), 0.1)
            assert norm > 0.1
        other.step()
    assert scaler.get_scale() == 1024.0
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


@every_base
def test_a_nan_in_one_task_makes_grad_scaler_skip_the_step(base: str) -> None:
    model, optimizer = pair(base, AvgNorm())
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    losses = model(batches(1)[0])
    losses[2] = losses[2] * float("nan")
    optimizer.backward([scaler.scale(loss) for loss in losses])
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0
    assert_same(model, Net())


# ------------------------------------------------------------------------------- hooks, closures


def test_step_hooks_fire_once_for_each_step() -> None:
    calls: list[str] = []

    def note(name: str):
        return lambda *_: calls.append(name)

    model = Net()
    own = torch.optim.SGD(model.parameters(), lr=0.1)
    own.register_step_pre_hook(note("own pre, made before"))
    optimizer = MTLOptimizer(own, Mean())
    optimizer.register_step_pre_hook(note("own pre"))
    optimizer.register_step_post_hook(note("own post"))
    handles = [
        register_optimizer_step_pre_hook(note("global pre")),
        register_optimizer_step_post_hook(note("global post")),
    ]
    try:
        train(model, optimizer, batches(1))
    finally:
        for handle in handles:
            handle.remove()
    assert sorted(calls) == sorted(
        ["own pre, made before", "own pre", "own post", "global pre", "global post"]
    )


def test_a_closure_goes_through_step_and_grad_scaler_refuses_it_as_ever() -> None:
    model, optimizer = pair("sgd")
    twin, other = pair("sgd")
    for x in batches(3):

        def closure(x: Tensor = x) -> Tensor:
            optimizer.zero_grad()
            return optimizer.backward(model(x)).losses.sum()

        assert torch.equal(optimizer.step(closure), torch.stack(twin(x)).sum())
        train(twin, other, [x])
    assert_same(model, twin)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(torch.zeros(()))
    with pytest.raises(RuntimeError, match="Closure use is not currently supported"):
        scaler.step(optimizer, closure=closure)


# -------------------------------------------------------------------------------------- averages


@pytest.mark.parametrize("kind", ["swa", "ema"])
def test_averaged_models_follow(kind: str) -> None:
    model, optimizer = pair("sgd", PCGrad())
    average = swa_utils.get_ema_multi_avg_fn(0.9) if kind == "ema" else None
    averaged = swa_utils.AveragedModel(model, multi_avg_fn=average)
    want = None
    for step, x in enumerate(batches(4)):
        train(model, optimizer, [x])
        averaged.update_parameters(model)
        rate = 1 / (step + 1) if kind == "swa" else 0.1
        now = model.trunk.weight.detach().clone()
        want = now if want is None else want + rate * (now - want)
    torch.testing.assert_close(averaged.module.trunk.weight, want)
    assert not torch.equal(averaged.module.trunk.weight, model.trunk.weight)
    swa_utils.update_bn(batches(2), averaged)
    assert copy.deepcopy(averaged).module(batches(1)[0])[0].isfinite()
