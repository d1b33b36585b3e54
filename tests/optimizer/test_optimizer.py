"""MTLOptimizer: a person's own optimizer with one more method. test_contract.py has the rest."""

from __future__ import annotations

import pytest
import torch
from contract import BASES, Net, batches, pair, train
from convolution_and_heads import Model

from mtlkernels import Mean, MTLOptimizer, PCGrad

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("base", BASES)
def test_wrapping_gives_the_same_object_of_both_classes(base: str) -> None:
    own = BASES[base](Net().parameters())
    cls, groups = type(own), own.param_groups
    wrapped = MTLOptimizer(own, PCGrad())
    assert wrapped is own
    assert wrapped.param_groups is groups
    assert isinstance(wrapped, MTLOptimizer)
    assert isinstance(wrapped, cls)
    assert isinstance(wrapped, torch.optim.Optimizer)
    assert type(wrapped).__name__ == "MTL" + cls.__name__


@pytest.mark.parametrize("method", ["sum", "mean", "pcgrad", "cagrad", "avgnorm"])
def test_training_lowers_every_loss(method: str) -> None:
    model, optimizer = pair("adamw", method)
    (x,) = batches(1)
    before = torch.stack(model(x))
    train(model, optimizer, [x] * 40)
    assert (torch.stack(model(x)) < before).all()


def test_pc_backward_is_backward() -> None:
    first, a = pair()
    second, b = pair()
    (x,) = batches(1)
    a.backward(first(x))
    b.pc_backward(second(x))
    for p, q in zip(first.parameters(), second.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None)
        if p.grad is not None:
            assert torch.equal(p.grad, q.grad)


def test_options_reach_backward() -> None:
    torch.manual_seed(0)
    model = Model()
    optimizer = MTLOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1),
        Mean(),
        shared=model.trunk[:2],
        weight_heads=True,
    )
    x = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    optimizer.backward(model(x))
    own = torch.autograd.grad(model(x)[0], model.heads[0].weight)[0]
    torch.testing.assert_close(model.heads[0].weight.grad, own / 3)
    plain = torch.autograd.grad(sum(model(x)), model.linear.weight)[0]
    torch.testing.assert_close(model.linear.weight.grad, plain / 3, rtol=1e-5, atol=1e-7)


def test_wrong_arguments_are_told_and_leave_the_optimizer_alone() -> None:
    own = torch.optim.SGD(Model().parameters(), lr=0.1)
    with pytest.raises(TypeError, match="base is a Model"):
        MTLOptimizer(Model(), "pcgrad")
    with pytest.raises(TypeError, match="method is a NoneType"):
        MTLOptimizer(own, None)
    with pytest.raises(ValueError, match="no method is called 'pc'"):
        MTLOptimizer(own, "pc")
    with pytest.raises(TypeError, match="the class PCGrad"):
        MTLOptimizer(own, PCGrad)
    assert type(own) is torch.optim.SGD
    wrapped = MTLOptimizer(own, "mean")
    with pytest.raises(ValueError, match="wrapped already"):
        MTLOptimizer(wrapped, "mean")


def test_repr_names_the_class_and_the_groups() -> None:
    _, optimizer = pair("sgd")
    assert repr(optimizer).startswith("MTLSGD (")


def test_a_wrapped_class_is_not_set_up_directly() -> None:
    _, optimizer = pair("sgd")
    with pytest.raises(TypeError, match="is made by wrapping"):
        type(optimizer)(optimizer.param_groups, lr=0.1)
