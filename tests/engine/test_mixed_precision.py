"""GradScaler, autocast and half-precision parameters: the method sees the losses' own gradients."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from trunk_and_heads import Model

import mtlkernels
from mtlkernels import DBMTL, SI, CAGrad, GradDrop, MTLOptimizer, NashMTL, PCGrad, Status

SCALE = 1024.0


def wrapped(
    method: object, kind: type = torch.optim.SGD, base: dict | None = None, **options: object
):
    torch.manual_seed(0)
    model = Model()
    optimizer = kind(model.parameters(), lr=0.1, **(base or {}))
    return model, MTLOptimizer(optimizer, copy.deepcopy(method), **options)


# Of degree 1, 0 and others in the gradients; with absolute lengths; with states; by losses.
METHODS = [
    *(PCGrad(), CAGrad(), NashMTL(), mtlkernels.AvgNorm(scale=2.0), mtlkernels.FairGrad(3.0)),
    *(mtlkernels.GradNorm(), mtlkernels.ClippedTasks(PCGrad(), 0.1)),
    *(GradDrop(seed=1), DBMTL(beta=0.9), mtlkernels.MoCo(), mtlkernels.ExcessMTL()),
    *(SI(), mtlkernels.FAMO(), mtlkernels.DWA()),
]
WAYS = [{}, {"collect": "batched"}, {"apply": "backward"}, {"every": 2}]
CASES = [(method, {}) for method in METHODS] + [(NashMTL(), way) for way in WAYS[1:]]


@pytest.mark.parametrize(("method", "options"), CASES, ids=str)
def test_steps_are_those_without_a_scaler(method, options) -> None:
    """The scale changes in between, as a growing scaler's does, so no state may hold it."""
    model, optimizer = wrapped(method, **options)
    plain, other = wrapped(method, **options)
    scaler = torch.amp.GradScaler("cpu", init_scale=SCALE, growth_interval=1)
    for step in range(4):
        x = torch.randn(6, 5, generator=torch.Generator().manual_seed(step))
        report = optimizer.backward({k: v + 0.5 for k, v in model(x).items()}, scaler=scaler)
        expected = other.backward({k: v + 0.5 for k, v in plain(x).items()})
        for name in ("gram", "weights", "losses", "status"):
            a, b = getattr(report, name), getattr(expected, name)
            assert (a is None) == (b is None)
            if a is not None:
                torch.testing.assert_close(a, b)
        for param, twin in zip(model.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(param.grad, twin.grad * SCALE * 2.0**step)
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        other.step()
        for either in (optimizer, other):
            either.zero_grad()
        for param, twin in zip(model.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(param, twin, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("features", [False, True])
def test_features_and_micro_batches_under_a_scaler(features) -> None:
    model, optimizer = wrapped(NashMTL())
    scaler = torch.amp.GradScaler("cpu", init_scale=SCALE)
    plain, other = wrapped(NashMTL())
    x = torch.randn(6, 5)
    if features:
        z, y = model.trunk(x), plain.trunk(x)
        optimizer.backward([h(z).square().mean() for h in model.heads], features=z, scaler=scaler)
        other.backward([h(y).square().mean() for h in plain.heads], features=y)
    else:
        for part in x.chunk(2):
            optimizer.backward(model(part), accumulate=True, scaler=scaler)
            other.backward(plain(part), accumulate=True)
        optimizer.combine()
        other.combine()
    for param, twin in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(param.grad, twin.grad * SCALE)


@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("options", WAYS[:4], ids=str)
def test_one_bad_task_makes_the_step_skip(options, bad) -> None:
    model, optimizer = wrapped(PCGrad(), **options)
    before = [param.detach().clone() for param in model.parameters()]
    scaler = torch.amp.GradScaler("cpu", init_scale=SCALE)
    losses = model(torch.randn(4, 5))
    losses["task 2"] = losses["task 2"] * bad
    report = optimizer.backward(losses, scaler=scaler)
    assert report.status[2] & Status.NON_FINITE
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == SCALE / 2
    for param, old in zip(model.parameters(), before, strict=True):
        assert torch.equal(param, old)


@pytest.mark.parametrize("base", [{}, {"foreach": True}, {"fused": True}], ids=str)
def test_the_update_is_not_scaled(base) -> None:
    """A wrapper that hides `_step_supports_amp_scaling` makes fused steps SCALE times too large."""
    model, optimizer = wrapped(PCGrad(), torch.optim.AdamW, base=base)
    plain, other = wrapped(PCGrad(), torch.optim.AdamW, base=base)
    scaler = torch.amp.GradScaler("cpu", init_scale=SCALE)
    for step in range(3):
        x = torch.randn(6, 5, generator=torch.Generator().manual_seed(step))
        optimizer.backward(model(x), scaler=scaler)
        other.backward(plain(x))
        scaler.step(optimizer)
        scaler.update()
        other.step()
        for either in (optimizer, other):
            either.zero_grad()
        for param, twin in zip(model.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(param, twin, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("collect", ["loop", "batched"])
def test_autocast(dtype, collect) -> None:
    """float32 parameters under autocast: gradients and .grad are float32."""
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Linear(5, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 4))
    heads = [nn.Linear(4, 2) for _ in range(3)]
    params = [p for module in (trunk, *heads) for p in module.parameters()]
    with torch.autocast("cpu", dtype=dtype):
        z = trunk(torch.randn(6, 5))
        losses = [(h(z).float() - t).square().mean() for t, h in enumerate(heads)]
    rows = [
        torch.autograd.grad(loss, list(trunk.parameters()), retain_graph=True) for loss in losses
    ]
    report = mtlkernels.backward(losses, params, CAGrad(), collect=collect)
    for p, param in enumerate(trunk.parameters()):
        want = sum(w * row[p].double() for w, row in zip(report.weights, rows, strict=True))
        assert param.grad.dtype == torch.float32
        torch.testing.assert_close(param.grad.double(), want, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dtypes", [(torch.bfloat16,) * 2, (torch.float32, torch.bfloat16)])
@pytest.mark.parametrize("options", WAYS[:4], ids=str)
def test_parameters_in_half_precision_and_mixed(dtypes, options) -> None:
    torch.manual_seed(0)
    first, second = nn.Linear(5, 8).to(dtypes[0]), nn.Linear(8, 4).to(dtypes[1])
    heads = [nn.Linear(4, 2) for _ in range(3)]
    params = [p for module in (first, second, *heads) for p in module.parameters()]
    optimizer = MTLOptimizer(torch.optim.SGD(params, lr=0.1), CAGrad(), **options)
    z = second(torch.tanh(first(torch.randn(6, 5, dtype=dtypes[0]))).to(dtypes[1])).float()
    losses = [(h(z) - t).square().mean() for t, h in enumerate(heads)]
    rows = [torch.autograd.grad(loss, params[:4], retain_graph=True) for loss in losses]
    report = optimizer.backward(losses)
    for p, param in enumerate(params[:4]):
        want = sum(w * row[p].double() for w, row in zip(report.weights, rows, strict=True))
        assert param.grad.dtype == param.dtype
        # one weighted backward rounds on its way through half-precision layers
        exact = param.dtype == torch.float32 and "apply" not in options
        tolerance = 1e-5 if exact else 3e-2
        torch.testing.assert_close(param.grad.double(), want, rtol=tolerance, atol=tolerance)
    optimizer.step()


def test_a_disabled_scaler_changes_nothing() -> None:
    model, optimizer = wrapped(PCGrad())
    plain, other = wrapped(PCGrad())
    x = torch.randn(6, 5)
    optimizer.backward(model(x), scaler=torch.amp.GradScaler("cpu", enabled=False))
    other.backward(plain(x))
    for param, twin in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(param.grad, twin.grad)


def test_what_a_method_learns_is_scaled_and_added_up() -> None:
    """As the model's own gradients are: the scaler unscales both."""
    torch.manual_seed(0)
    model = Model()
    twin = copy.deepcopy(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=SCALE)
    learnt = []
    for net, given in ((model, scaler), (twin, None)):
        method = mtlkernels.UW(3)
        params = [*net.parameters(), *method.parameters()]
        optimizer = MTLOptimizer(torch.optim.SGD(params, lr=0.1), method)
        x = torch.randn(6, 5, generator=torch.Generator().manual_seed(1))
        for _ in range(2):
            optimizer.backward(net(x), scaler=given)
        learnt.append([param.grad for param in method.parameters()])
    for scaled, plain in zip(*learnt, strict=True):
        assert (plain != 0).all()
        torch.testing.assert_close(scaled, SCALE * plain)


@pytest.mark.parametrize("scaler", [2.0, "auto"])
def test_what_is_no_scaler_is_told(scaler) -> None:
    model, optimizer = wrapped(PCGrad())
    with pytest.raises(TypeError, match="GradScaler"):
        optimizer.backward(model(torch.randn(4, 5)), scaler=scaler)
    with pytest.raises(ValueError, match="it is one number"):
        optimizer.backward(model(torch.randn(4, 5)), scaler=torch.ones(2))
