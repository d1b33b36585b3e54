"""Weights for several steps: when the method is asked, what a step between costs and writes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from trunk_and_heads import Model

import mtlkernels
from mtlkernels import SI, CAGrad, GradDrop, MTLOptimizer, PCGrad, Reused


class Counting(mtlkernels.GramMethod):
    """CAGrad that counts how often it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.asked = CAGrad(), 0

    def forward(self, gram: Tensor, losses: Tensor | None = None) -> Tensor:
        self.asked += 1
        return self.inner(gram, losses)


def wrapped(method: object, **options: object) -> tuple[Model, MTLOptimizer]:
    torch.manual_seed(0)
    model = Model().double()
    return model, MTLOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), method, **options)


def inputs() -> Tensor:
    return torch.randn(6, 5, dtype=torch.float64)


@pytest.mark.parametrize("how", [{}, {"apply": "backward"}, {"weight_heads": True}], ids=str)
def test_the_method_is_asked_every_third_step(how) -> None:
    method = Counting()
    model, optimizer = wrapped(method, every=3, **how)
    kept = None
    for step in range(7):
        x = inputs()
        optimizer.zero_grad()
        report = optimizer.backward(model(x))
        assert method.asked == step // 3 + 1
        if step % 3 == 0:
            assert report.gram is not None
            kept = report.weights
        else:
            assert report.gram is None
            assert report.collected == "one weighted backward, with kept weights"
        assert torch.equal(report.weights, kept)
        losses = list(model(x).values())
        trunk = list(model.trunk.parameters())
        want = torch.autograd.grad((torch.stack(losses) * kept).sum(), trunk, retain_graph=True)
        for param, grad in zip(trunk, want, strict=True):
            torch.testing.assert_close(param.grad, grad)
        for t, head in enumerate(model.heads):
            factor = kept[t] if "weight_heads" in how else 1.0
            for param, grad in zip(
                head.parameters(),
                torch.autograd.grad(losses[t], list(head.parameters()), retain_graph=True),
                strict=True,
            ):
                torch.testing.assert_close(param.grad, factor * grad)
        optimizer.step()


def test_a_step_between_runs_each_backward_once() -> None:
    """Counted by hooks on the activations: a gradient passes each of them once."""
    model, optimizer = wrapped(PCGrad(), every=2, check=False)
    for expected in (3, 1):  # three tasks' backwards, then one
        seen = []
        x = inputs()
        hidden = model.trunk[0](x)
        hidden.register_hook(lambda grad, seen=seen: seen.append(grad))
        z = model.trunk[2](torch.tanh(hidden))
        losses = [(h(z) - t).square().mean() for t, h in enumerate(model.heads)]
        optimizer.zero_grad()
        optimizer.backward(losses)
        assert len(seen) == expected


def test_state_goes_into_a_fresh_pair() -> None:
    model, optimizer = wrapped(PCGrad(seed=5), every=3)
    batches = [inputs() for _ in range(6)]
    for x in batches[:2]:
        optimizer.zero_grad()
        optimizer.backward(model(x))
        optimizer.step()
    other, fresh = wrapped(PCGrad(seed=5), every=3)
    other.load_state_dict(model.state_dict())
    fresh.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for x in batches[2:]:
        for m, o in ((model, optimizer), (other, fresh)):
            o.zero_grad()
            o.backward(m(x))
            o.step()
        for a, b in zip(model.parameters(), other.parameters(), strict=True):
            assert torch.equal(a, b)


def test_with_a_scaler_weights_that_are_not_finite_are_not_reused() -> None:
    method = Counting()
    model, optimizer = wrapped(method, every=4)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    losses = model(inputs())
    losses["task 1"] = losses["task 1"] * torch.inf
    optimizer.backward(losses, scaler=scaler)
    assert not model.trunk[0].weight.grad.isfinite().all()
    optimizer.zero_grad()
    optimizer.backward(model(inputs()), scaler=scaler)
    assert method.asked == 2
    assert model.trunk[0].weight.grad.isfinite().all()


def test_wrong_use_is_told() -> None:
    for every in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match="whole number"):
            Reused(PCGrad(), every)
    for method in (SI(), GradDrop()):
        with pytest.raises(ValueError, match="not a Gram method"):
            wrapped(method, every=2)
    with pytest.raises(ValueError, match="reuses weights"):
        wrapped(PCGrad(), every=2, parts=[[]])
    model, optimizer = wrapped(PCGrad(), every=2)
    optimizer.backward(model(inputs()))
    with pytest.raises(ValueError, match="make a new one"):
        optimizer.backward(list(model(inputs()).values())[:2])
    with pytest.raises(ValueError, match="to be reused"):
        Reused(Reused(PCGrad(), 2), 2)


def test_a_step_that_fails_is_not_counted() -> None:
    method = Counting()
    model, optimizer = wrapped(method, every=3)
    optimizer.backward(model(inputs()))
    losses = model(inputs())
    sum(losses.values()).backward()  # the graph is gone
    with pytest.raises(RuntimeError, match="second time"):
        optimizer.backward(losses)
    optimizer.backward(model(inputs()))
    optimizer.backward(model(inputs()))
    assert method.asked == 1
    optimizer.backward(model(inputs()))
    assert method.asked == 2
