"""Micro-batches: rows are added up and combined once, as one large batch would have been."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from trunk_and_heads import Model

import mtlkernels
from mtlkernels import SI, AvgNorm, CAGrad, GradDrop, MTLOptimizer, PCGrad, UPGrad


def pair(method: object, **options: object) -> tuple[Model, MTLOptimizer]:
    torch.manual_seed(0)
    model = Model().double()
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    return model, MTLOptimizer(base, copy.deepcopy(method), **options)


WAYS = [{}, {"collect": "batched"}, {"weight_heads": True}]


@pytest.mark.parametrize("options", WAYS, ids=str)
@pytest.mark.parametrize("method", [PCGrad(), CAGrad(), UPGrad(), AvgNorm("max")], ids=repr)
def test_equals_one_large_batch(method, options) -> None:
    x = torch.randn(12, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    model, optimizer = pair(method, **options)
    large, whole = pair(method, **options)
    for _ in range(2):
        for part in x.chunk(4):
            losses = {name: loss / 4 for name, loss in model(part).items()}
            assert optimizer.backward(losses, accumulate=True) is None
        assert all(param.grad is None for param in model.parameters())
        report, expected = optimizer.combine(), whole.backward(large(x))
        for name in ("gram", "weights", "losses"):
            torch.testing.assert_close(getattr(report, name), getattr(expected, name))
        assert report.tasks == ("task 0", "task 1", "task 2")
        for param, other in zip(model.parameters(), large.parameters(), strict=True):
            torch.testing.assert_close(param.grad, other.grad)
        for either in (optimizer, whole):
            either.step()
            either.zero_grad()


def test_a_row_method_takes_the_sum() -> None:
    x = torch.randn(12, 5, dtype=torch.float64)
    model, optimizer = pair(GradDrop(seed=3))
    large, whole = pair(GradDrop(seed=3))
    for part in x.chunk(3):
        optimizer.backward([loss / 3 for loss in model(part).values()], accumulate=True)
    optimizer.combine()
    whole.backward(large(x))
    for param, other in zip(model.parameters(), large.parameters(), strict=True):
        torch.testing.assert_close(param.grad, other.grad)


def test_a_task_may_be_absent_from_a_parameter_in_some_micro_batches() -> None:
    trunk, heads = nn.Linear(5, 4).double(), [nn.Linear(4, 1).double() for _ in range(3)]
    params = [p for module in (trunk, *heads) for p in module.parameters()]
    optimizer = MTLOptimizer(torch.optim.SGD(params, lr=0.1), mtlkernels.Sum())
    x = torch.randn(6, 5, dtype=torch.float64)
    for chosen in ([0, 1], [1, 2]):  # two losses, of other heads each time
        z = trunk(x)
        losses = [heads[h](z).square().mean() for h in chosen]
        optimizer.backward(losses, accumulate=True)
    optimizer.combine()
    z = trunk(x)
    wanted = torch.autograd.grad(sum(heads[h](z).square().mean() for h in (0, 1, 1, 2)), params)
    for param, grad in zip(params, wanted, strict=True):
        torch.testing.assert_close(param.grad, grad)


def test_wrong_use_is_told_and_loses_nothing() -> None:
    x = torch.randn(4, 5, dtype=torch.float64)
    model, optimizer = pair(PCGrad())
    with pytest.raises(ValueError, match="nothing was accumulated"):
        optimizer.combine()
    optimizer.backward(model(x), accumulate=True)
    with pytest.raises(ValueError, match="earlier micro-batches have not been combined"):
        optimizer.backward(model(x))
    with pytest.raises(ValueError, match="to be added to those of an earlier batch"):
        optimizer.backward(list(model(x).values()), accumulate=True)
    with pytest.raises(ValueError, match="features= takes none"):
        optimizer.backward(model(x), accumulate=True, features=x)
    optimizer.combine()
    once = [param.grad.clone() for param in model.parameters()]
    optimizer.zero_grad()
    optimizer.backward(model(x))
    for param, grad in zip(model.parameters(), once, strict=True):
        torch.testing.assert_close(param.grad, grad)


@pytest.mark.parametrize(
    ("method", "options"), [(SI(), {}), (PCGrad(), {"apply": "backward"})], ids=str
)
def test_what_keeps_no_rows_is_refused(method, options) -> None:
    model, optimizer = pair(method, **options)
    losses = {name: loss + 1 for name, loss in model(torch.randn(4, 5).double()).items()}
    with pytest.raises(ValueError, match="accumulate= adds up the task gradients"):
        optimizer.backward(losses, accumulate=True)


def test_zero_grad_and_a_loaded_state_drop_what_was_added() -> None:
    x = torch.randn(4, 5, dtype=torch.float64)
    model, optimizer = pair(PCGrad())
    for drop in (optimizer.zero_grad, lambda: optimizer.load_state_dict(optimizer.state_dict())):
        optimizer.backward({k: 1000 * v for k, v in model(x).items()}, accumulate=True)
        drop()
        optimizer.backward(model(x), accumulate=True)
        report = optimizer.combine()
        torch.testing.assert_close(report.losses, torch.stack(list(model(x).values())).detach())
        optimizer.zero_grad()


def test_rows_belong_to_their_parameters() -> None:
    a, b = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
    b.requires_grad_(False)
    base = torch.optim.SGD([*a.parameters(), *b.parameters()], lr=0.1)
    optimizer = MTLOptimizer(base, mtlkernels.Sum())

    def losses() -> list[Tensor]:
        y = b(a(torch.ones(1, 3)))
        return [y.sum(), y.square().sum()]

    optimizer.backward(losses(), accumulate=True)
    a.requires_grad_(False)
    b.requires_grad_(True)
    with pytest.raises(ValueError, match="other parameters require grad"):
        optimizer.backward(losses(), accumulate=True)
    optimizer.combine()
    assert b.weight.grad is None
    assert a.weight.grad is not None


def test_micro_batches_under_different_scales_count_alike() -> None:
    x = torch.randn(6, 5, dtype=torch.float64)
    model, optimizer = pair(mtlkernels.NashMTL())
    large, whole = pair(mtlkernels.NashMTL())
    for part, scale in zip(x.chunk(3), (1024.0, 1.0, 64.0), strict=True):
        scaler = torch.tensor(scale, dtype=torch.float64)
        optimizer.backward(model(part), accumulate=True, scaler=scaler)
        whole.backward(large(part), accumulate=True)
    report, expected = optimizer.combine(), whole.combine()
    torch.testing.assert_close(report.gram, expected.gram)
    for param, other in zip(model.parameters(), large.parameters(), strict=True):
        torch.testing.assert_close(param.grad, 64 * other.grad)
    optimizer.backward(model(x), accumulate=True)
    with pytest.raises(ValueError, match="with every micro-batch or with none"):
        optimizer.backward(model(x), accumulate=True, scaler=torch.tensor(2.0))


class Reusing(torch.autograd.Function):
    """Hands out a buffer as gradient that it fills again the next time."""

    buffer = torch.zeros(3)

    @staticmethod
    def forward(ctx, x: Tensor, fill: float) -> Tensor:
        ctx.fill = fill
        return x.clone()

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return Reusing.buffer.fill_(ctx.fill), None


def test_what_autograd_hands_out_may_be_used_again() -> None:
    weight = nn.Parameter(torch.ones(3))
    optimizer = MTLOptimizer(torch.optim.SGD([weight], lr=0.1), mtlkernels.Sum())
    for fill in (1.0, 2.0):
        optimizer.backward([Reusing.apply(weight, fill).sum()], accumulate=True)
    optimizer.combine()
    assert weight.grad.tolist() == [3.0, 3.0, 3.0]


def test_reused_weights_and_micro_batches_do_not_go_together() -> None:
    model, optimizer = pair(PCGrad(), every=2)
    with pytest.raises(ValueError, match="accumulate= adds up"):
        optimizer.backward(model(torch.randn(4, 5).double()), accumulate=True)
