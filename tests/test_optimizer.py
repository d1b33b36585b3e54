"""MTLOptimizer: a person's own optimizer with one more method."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from test_backward import Model
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from mtlkernels import AvgNorm, CAGrad, Mean, MTLOptimizer, PCGrad

BASES = {
    "sgd": lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9),
    "adamw": lambda params: torch.optim.AdamW(params, lr=1e-2),
    "adam-foreach": lambda params: torch.optim.Adam(params, lr=1e-2, foreach=True),
    "adam-fused": lambda params: torch.optim.Adam(params, lr=1e-2, fused=True),
    "adagrad": lambda params: torch.optim.Adagrad(params, lr=1e-2),
}


def batches(count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(2, 3, 6, 6, generator=generator) for _ in range(count)]


def set_up(base: str = "adamw", method: object = "pcgrad") -> tuple[Model, MTLOptimizer]:
    torch.manual_seed(0)
    model = Model()
    return model, MTLOptimizer(BASES[base](model.parameters()), method)


def train(model: Model, optimizer: MTLOptimizer, images: list[Tensor]) -> None:
    for x in images:
        optimizer.zero_grad()
        optimizer.backward(model(x))
        optimizer.step()


def state(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def assert_same(a: nn.Module, b: nn.Module) -> None:
    for x, y in zip(a.parameters(), b.parameters(), strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("base", BASES)
def test_wrapping_gives_the_same_object_of_both_classes(base: str) -> None:
    own = BASES[base](Model().parameters())
    cls, groups = type(own), own.param_groups
    wrapped = MTLOptimizer(own, PCGrad())
    assert wrapped is own
    assert wrapped.param_groups is groups
    assert isinstance(wrapped, MTLOptimizer)
    assert isinstance(wrapped, cls)
    assert isinstance(wrapped, torch.optim.Optimizer)
    assert type(wrapped).__name__ == "MTL" + cls.__name__


@pytest.mark.parametrize("base", BASES)
def test_one_loss_trains_as_the_base_alone_does(base: str) -> None:
    model, optimizer = set_up(base, PCGrad())
    plain = copy.deepcopy(model)
    own = BASES[base](plain.parameters())
    for x in batches(4):
        optimizer.zero_grad()
        optimizer.backward([model(x)[0]])
        optimizer.step()
        own.zero_grad()
        plain(x)[0].backward()
        own.step()
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", ["sum", "mean", "pcgrad", "cagrad", "avgnorm"])
def test_training_lowers_every_loss(method: str) -> None:
    model, optimizer = set_up("adamw", method)
    (x,) = batches(1)
    before = torch.stack(model(x))
    train(model, optimizer, [x] * 40)
    assert (torch.stack(model(x)) < before).all()


def test_zero_grad_both_ways_gives_the_same_steps() -> None:
    first, a = set_up()
    second, b = set_up()
    for x in batches(4):
        a.zero_grad(set_to_none=True)
        b.zero_grad(set_to_none=False)
        a.backward(first(x))
        b.backward(second(x))
        a.step()
        b.step()
    assert_same(first, second)


def test_pc_backward_is_backward() -> None:
    first, a = set_up()
    second, b = set_up()
    (x,) = batches(1)
    a.backward(first(x))
    b.pc_backward(second(x))
    for p, q in zip(first.parameters(), second.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None)
        if p.grad is not None:
            assert torch.equal(p.grad, q.grad)


def test_closures_schedulers_and_hooks_meet_one_optimizer() -> None:
    torch.manual_seed(0)
    model = Model()
    own = torch.optim.SGD(model.parameters(), lr=1.0)
    before = torch.optim.lr_scheduler.StepLR(own, step_size=1, gamma=0.5)
    optimizer = MTLOptimizer(own, Mean())
    after = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    calls: list[str] = []
    optimizer.register_step_post_hook(lambda *_: calls.append("own"))
    handle = register_optimizer_step_post_hook(lambda *_: calls.append("global"))
    (x,) = batches(1)

    def closure() -> Tensor:
        optimizer.zero_grad()
        return optimizer.backward(model(x)).losses.sum()

    try:
        loss = optimizer.step(closure)
    finally:
        handle.remove()
    assert float(loss) > 0
    assert sorted(calls) == ["global", "own"]
    before.step()
    after.step()
    assert optimizer.param_groups[0]["lr"] == 0.25


def test_add_param_group_is_seen() -> None:
    model, _ = set_up()
    optimizer = MTLOptimizer(torch.optim.SGD(model.trunk[:2], lr=0.1), Mean())
    optimizer.add_param_group({"params": model.trunk[2:], "lr": 0.2})
    (x,) = batches(1)
    optimizer.backward(model(x))
    assert all(p.grad is not None for p in model.trunk)


@pytest.mark.parametrize("base", ["sgd", "adamw"])
def test_state_dict_continues_bit_for_bit_in_a_fresh_pair(base: str) -> None:
    images = batches(6)
    model, optimizer = set_up(base, PCGrad(seed=4))
    train(model, optimizer, images[:3])
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    fresh, other = set_up(base, PCGrad(seed=99))
    fresh.load_state_dict(saved[0])
    other.load_state_dict(saved[1])
    train(model, optimizer, images[3:])
    train(fresh, other, images[3:])
    assert_same(model, fresh)
    assert int(other.method.step) == 6
    assert not any(key.startswith("mtl") for key in other.param_groups[0])


def test_a_state_dict_from_before_wrapping_loads() -> None:
    model, optimizer = set_up("adamw", PCGrad(seed=4))
    plain = torch.optim.AdamW(model.parameters(), lr=0.5)
    optimizer.load_state_dict(plain.state_dict())
    assert optimizer.param_groups[0]["lr"] == 0.5
    assert int(optimizer.method.seed) == 4


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_copies_continue_alike(how: str) -> None:
    images = batches(4)
    pair = set_up("adamw", CAGrad(c=0.7))
    train(*pair, images[:2])
    twin = copy.deepcopy(pair) if how == "deepcopy" else pickle.loads(pickle.dumps(pair))
    assert type(twin[1]) is type(pair[1])
    assert twin[1].method.c == 0.7
    train(*pair, images[2:])
    train(*twin, images[2:])
    assert_same(pair[0], twin[0])


def test_a_nan_in_one_task_makes_grad_scaler_skip_the_step() -> None:
    model, optimizer = set_up("sgd", AvgNorm())
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    (x,) = batches(1)
    before = state(model)
    losses = model(x)
    losses[2] = losses[2] * float("nan")
    optimizer.backward([scaler.scale(loss) for loss in losses])
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0
    for p, old in zip(model.parameters(), before, strict=True):
        assert torch.equal(p, old)


def test_options_reach_backward() -> None:
    model, _ = set_up()
    optimizer = MTLOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1),
        Mean(),
        shared=model.trunk[:2],
        weight_heads=True,
    )
    (x,) = batches(1)
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
    _, optimizer = set_up("sgd")
    assert repr(optimizer).startswith("MTLSGD (")


def test_the_state_of_another_method_is_refused_whole() -> None:
    _, optimizer = set_up("adamw", PCGrad())
    _, other = set_up("adamw", CAGrad())
    saved = optimizer.state_dict()
    saved["param_groups"][0]["lr"] = 0.5
    with pytest.raises(ValueError, match="state of another method"):
        other.load_state_dict(saved)
    assert other.param_groups[0]["lr"] == 1e-2


def test_a_wrapped_class_is_not_set_up_directly() -> None:
    _, optimizer = set_up("sgd")
    with pytest.raises(TypeError, match="is made by wrapping"):
        type(optimizer)(optimizer.param_groups, lr=0.1)
