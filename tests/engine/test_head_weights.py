"""What `weight_heads=True` gives a head: per family, and in the published code's conventions."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from gram_methods import GRAM_METHODS, tasks_for
from torch import Tensor, nn

import mtlkernels
from mtlkernels import (
    DBMTL,
    AvgNorm,
    ExcessMTL,
    LogLosses,
    MoCo,
    MTLOptimizer,
    NashMTL,
    PCGrad,
    Report,
    Tracked,
)

pytestmark = pytest.mark.usefixtures("one_thread")

X = torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


class Model(nn.Module):
    def __init__(self, tasks: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Linear(5, 4).double()
        self.heads = nn.ModuleList(nn.Linear(4, 2).double() for _ in range(tasks))

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        z = torch.tanh(self.trunk(x))
        losses = [(t + 1) * (h(z) - t).square().mean() + 0.1 for t, h in enumerate(self.heads)]
        return z, losses


def own(model: Model) -> list[list[Tensor]]:
    """The heads' gradients of their own losses."""
    losses = model(X)[1]
    pairs = zip(losses, model.heads, strict=True)
    return [list(torch.autograd.grad(loss, list(head.parameters()))) for loss, head in pairs]


def assert_heads(model: Model, weights: Tensor, gradients: list[list[Tensor]]) -> None:
    for weight, head, row in zip(weights, model.heads, gradients, strict=True):
        for param, grad in zip(head.parameters(), row, strict=True):
            torch.testing.assert_close(param.grad, weight * grad, rtol=1e-9, atol=1e-12)


def shared_gram(model: Model) -> Tensor:
    trunk = list(model.trunk.parameters())
    rows = [
        torch.cat([g.flatten() for g in torch.autograd.grad(loss, trunk, retain_graph=True)])
        for loss in model(X)[1]
    ]
    return torch.stack(rows) @ torch.stack(rows).T


def balanced(method: object, tasks: int = 3, **options: Any) -> tuple[Model, Report]:
    model = Model(tasks)
    losses = model(X)[1]
    return model, mtlkernels.backward(losses, list(model.parameters()), method, **options)


WITHOUT_RULE = [name for name in GRAM_METHODS if not name.startswith(("NashMTL", "PerPart"))]


@pytest.mark.parametrize("name", WITHOUT_RULE)
def test_a_gram_method_s_head_gets_its_weight_times_its_gradient(name: str) -> None:
    tasks = tasks_for(name, 3)
    method = GRAM_METHODS[name](tasks)
    if method.own_head_weights:
        return
    model, report = balanced(method, tasks, weight_heads=True)
    assert_heads(model, report.weights, own(model))


@pytest.mark.parametrize("method", [PCGrad(), NashMTL(), DBMTL(), MoCo()])
def test_by_default_a_head_gets_its_own_gradient(method: object) -> None:
    model, _ = balanced(method)
    assert_heads(model, torch.ones(3), own(model))


@pytest.mark.parametrize("max_norm", [1.0, 0.01, 1.01 * math.sqrt(3), None])
@pytest.mark.parametrize(
    "options",
    [{}, {"apply": "backward"}, {"measure": True}, {"features": True}, {"collect": "batched"}],
    ids=str,
)
def test_nash_mtl_clips_the_shared_gradient_alone(
    options: dict[str, Any], max_norm: float | None
) -> None:
    """As nash-mtl: backward of the weighted losses, then clip_grad_norm_ of what is shared."""
    model, twin = Model(), Model()
    z, losses = model(X)
    given = dict(options)
    if "measure" in given:
        given["measure"] = list(model.trunk.parameters())
    if "features" in given:
        given["features"] = z
    method = NashMTL(max_norm)
    report = mtlkernels.backward(
        losses, list(model.parameters()), method, weight_heads=True, **given
    )
    alpha = NashMTL(None)(report.gram)
    sum(a * loss for a, loss in zip(alpha, twin(X)[1], strict=True)).backward()
    if max_norm is not None and "features" not in options:
        nn.utils.clip_grad_norm_(twin.trunk.parameters(), max_norm)
        for a, b in zip(model.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-9)
    for a, b in zip(model.heads.parameters(), twin.heads.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-9, atol=1e-12)


def test_reused_weights_are_kept_for_heads_as_well() -> None:
    model = Model()
    optimizer = MTLOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.0), NashMTL(), every=3, weight_heads=True
    )
    alpha = NashMTL(None)(shared_gram(model))
    for step in range(3):
        optimizer.zero_grad()
        optimizer.backward(model(X)[1])
        assert_heads(model, alpha, own(model))
        assert math.isclose(
            torch.cat([p.grad.flatten() for p in model.trunk.parameters()]).norm(), 1
        )
        if step == 1:  # kept weights come back with both
            fresh = MTLOptimizer(
                torch.optim.SGD(model.parameters(), lr=0.0), NashMTL(), every=3, weight_heads=True
            )
            fresh.load_state_dict(optimizer.state_dict())
            optimizer = fresh


@pytest.mark.parametrize("beta", [0.0, 0.9])
def test_dbmtl_s_heads_get_the_gradients_of_weighted_log_losses(beta: float) -> None:
    """Its published code balances log-losses, whatever the averages: w g / L, not w g."""
    model = Model()
    params = list(model.parameters())
    method = DBMTL(beta) if beta else LogLosses(AvgNorm("max"))
    for _ in range(2):  # the second step's rows are averages, and heads have none
        model.zero_grad()
        losses = model(X)[1]
        report = mtlkernels.backward(losses, params, method, weight_heads=True)
    logs = [loss.log() for loss in model(X)[1]]
    gradients = [
        list(torch.autograd.grad(log, list(head.parameters())))
        for log, head in zip(logs, model.heads, strict=True)
    ]
    values = torch.stack(model(X)[1]).detach()
    weights = report.weights if beta else report.weights * values  # of log L
    assert_heads(model, weights, gradients)


def test_rows_that_are_gradients_of_the_losses() -> None:
    for method in (Tracked(AvgNorm(), 0.5), MoCo(), ExcessMTL(), DBMTL(log_losses=False)):
        model, report = balanced(method, weight_heads=True)
        assert_heads(model, report.weights, own(model))


def test_moco_s_normalized_rows() -> None:
    """h = L g / ||g||, the norm over the shared parameters."""
    model, report = balanced(MoCo(rows="normalized"), weight_heads=True)
    factor = report.losses / shared_gram(model).diagonal().sqrt()
    assert_heads(model, report.weights * factor, own(model))


def test_a_task_that_takes_no_part_gives_its_head_nothing() -> None:
    """A loss of 0 has no logarithm: weight 0, and not 0 times infinity."""
    model = Model()
    losses = model(X)[1]
    losses[0] = losses[0] - losses[0].detach()
    report = mtlkernels.backward(losses, list(model.parameters()), DBMTL(), weight_heads=True)
    assert report.weights[0] == 0
    grads = [param.grad for param in model.heads[0].parameters()]
    assert all(grad is None or not grad.any() for grad in grads)
    assert all(param.grad.isfinite().all() for param in model.trunk.parameters())
