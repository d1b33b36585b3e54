"""The optimizer contract: what is saved, loaded, copied and looked at through another object."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from contract import (
    BASES,
    EVERY_METHOD,
    KINDS,
    Method,
    Net,
    assert_same,
    assert_same_state,
    batches,
    pair,
    train,
)

from mtlkernels import UW, CAGrad, GradVac, Mean, MTLOptimizer, PCGrad, Tracked
from mtlkernels.methods import METHODS

pytestmark = pytest.mark.usefixtures("one_thread")

BEFORE, AFTER = batches(3), batches(3, seed=2)


def on_disk(state: object) -> Any:
    """As from torch.save and torch.load with its safe default."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file)


# ---------------------------------------------------------------------------------- state dicts


def test_every_registered_method_is_tried() -> None:
    assert {type(make()) for _, make in EVERY_METHOD.values()} >= set(METHODS.values())


@pytest.mark.parametrize("name", EVERY_METHOD)
def test_a_fresh_pair_continues_bit_for_bit_with_its_scheduler(name: str) -> None:
    tasks, make = EVERY_METHOD[name]
    model, optimizer = pair("adamw", make(), tasks)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    for x in BEFORE:
        train(model, optimizer, [x])
        schedule.step()
    saved = on_disk([x.state_dict() for x in (model, optimizer, schedule)])
    fresh, other = pair("adamw", make(), tasks, seed=5)
    follows = torch.optim.lr_scheduler.StepLR(other, 2)
    for x, state in zip((fresh, other, follows), saved, strict=True):
        x.load_state_dict(state)
    for x in AFTER:
        for own, its, rate in ((model, optimizer, schedule), (fresh, other, follows)):
            train(own, its, [x])
            rate.step()
    assert_same(model, fresh)
    assert_same_state(optimizer.method, other.method)
    assert other.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"] == pytest.approx(1e-5)


@pytest.mark.parametrize("base", BASES)
def test_every_base_is_saved_with_its_method(base: str) -> None:
    model, optimizer = pair(base, PCGrad(seed=4))
    train(model, optimizer, BEFORE)
    saved = on_disk([model.state_dict(), optimizer.state_dict()])
    fresh, other = pair(base, PCGrad(seed=99), seed=5)
    fresh.load_state_dict(saved[0])
    other.load_state_dict(saved[1])
    train(model, optimizer, AFTER)
    train(fresh, other, AFTER)
    assert_same(model, fresh)


def test_the_groups_name_the_method_and_hold_none_of_its_state() -> None:
    model, optimizer = pair("sgd", PCGrad())
    train(model, optimizer, BEFORE)
    assert isinstance(optimizer.state_dict()["param_groups"][0]["mtl_state"], dict)
    assert optimizer.param_groups[0]["mtl_state"] == "PCGrad"
    assert "mtl_state: PCGrad" in repr(optimizer)
    _, stateless = pair("sgd", Mean())
    assert "mtl_state" not in stateless.param_groups[0]
    assert "mtl_state" not in stateless.state_dict()["param_groups"][0]


def test_a_state_dict_from_before_wrapping_loads() -> None:
    model, optimizer = pair("adamw", PCGrad(seed=4))
    plain = torch.optim.AdamW(model.parameters(), lr=0.5)
    optimizer.load_state_dict(plain.state_dict())
    assert optimizer.param_groups[0]["lr"] == 0.5
    assert optimizer.param_groups[0]["mtl_state"] == "PCGrad"
    assert int(optimizer.method.seed) == 4


def test_a_base_may_load_before_it_is_wrapped() -> None:
    model, optimizer = pair("adamw", Tracked(PCGrad(seed=4), 0.7))
    train(model, optimizer, BEFORE)
    saved = on_disk([model.state_dict(), optimizer.state_dict()])
    fresh = Net(seed=5)
    own = BASES["adamw"](fresh.parameters())
    fresh.load_state_dict(saved[0])
    own.load_state_dict(saved[1])
    other = MTLOptimizer(own, Tracked(PCGrad(seed=99), 0.7))
    train(model, optimizer, AFTER)
    train(fresh, other, AFTER)
    assert_same(model, fresh)
    assert_same_state(optimizer.method, other.method)


@pytest.mark.parametrize("method", [CAGrad(), Mean(), GradVac()], ids=lambda m: type(m).__name__)
def test_the_state_of_another_method_is_refused_whole(method: Method) -> None:
    _, optimizer = pair("adamw", PCGrad())
    _, other = pair("adamw", method)
    saved = optimizer.state_dict()
    saved["param_groups"][0]["lr"] = 0.5
    with pytest.raises(ValueError, match=r"state of another method \(.*seed.*\) than"):
        other.load_state_dict(saved)
    assert other.param_groups[0]["lr"] == 1e-2
    own = BASES["adamw"](Net().parameters())
    own.load_state_dict(saved)
    with pytest.raises(ValueError, match="state of another method"):
        MTLOptimizer(own, method)
    assert type(own) is torch.optim.AdamW


def test_state_dict_hooks_see_the_whole_state_and_may_change_it() -> None:
    calls: list[str] = []
    model = Net()
    own = BASES["adamw"](model.parameters())

    def nest(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        calls.append("post")
        assert "mtl_state" in state["param_groups"][0]
        return {"nested": state}

    own.register_state_dict_post_hook(nest)  # made before the wrapping
    optimizer = MTLOptimizer(own, PCGrad(seed=4))
    optimizer.register_state_dict_pre_hook(lambda _: calls.append("pre"))
    optimizer.register_load_state_dict_pre_hook(lambda _, state: state["nested"])
    optimizer.register_load_state_dict_post_hook(lambda _: calls.append("loaded"))
    train(model, optimizer, BEFORE)
    saved = copy.deepcopy(optimizer.state_dict())
    assert calls == ["pre", "post"]
    train(model, optimizer, BEFORE)
    optimizer.load_state_dict(saved)
    assert calls == ["pre", "post", "loaded"]
    assert int(optimizer.method.step) == 3


# ---------------------------------------------------------------------------------------- copies


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
@pytest.mark.parametrize("name", ["PCGrad", "GradVac", "UW", "MoCo"])
def test_copies_continue_alike(name: str, how: str) -> None:
    both = pair("adamw", KINDS[name]())
    torch.optim.lr_scheduler.StepLR(both[1], 2)  # replaces step on the object
    train(*both, BEFORE)
    twin = copy.deepcopy(both) if how == "deepcopy" else pickle.loads(pickle.dumps(both))
    assert type(twin[1]) is type(both[1])
    assert twin[1].method is not both[1].method
    train(*both, AFTER)
    train(*twin, AFTER)
    assert_same(*(model for model, _ in (both, twin)))
    assert_same_state(both[1].method, twin[1].method)


# --------------------------------------------------------------------- seen through other objects


class Relay:
    """As Lightning's manual optimisation hands an optimizer out: the class of both, never set up,
    and what is not found on it is looked up on the optimizer."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self.__class__ = type("Relay" + type(optimizer).__name__, (Relay, type(optimizer)), {})

    def __getattr__(self, name: str) -> Any:
        return getattr(self._optimizer, name)

    def step(self, *args: Any) -> Any:
        return self._optimizer.step(*args)


class Mirror(Relay):
    """As older releases did: with the optimizer's attributes of that moment."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        super().__init__(optimizer)
        copied = {name: value for name, value in vars(optimizer).items() if name != "step"}
        self.__dict__.update(copied)


@pytest.mark.parametrize("kind", [Relay, Mirror])
@pytest.mark.parametrize("name", ["PCGrad", "UW", "MoCo"])
def test_an_object_of_its_class_that_was_never_set_up_serves(kind: type, name: str) -> None:
    model, optimizer = pair("adamw", KINDS[name]())
    twin, other = pair("adamw", KINDS[name]())
    relay = kind(optimizer)
    assert isinstance(relay, torch.optim.AdamW)
    assert isinstance(relay, MTLOptimizer)
    assert relay.method is optimizer.method
    train(model, relay, BEFORE)
    train(twin, other, BEFORE)
    assert_same(model, twin)
    assert_same_state(optimizer.method, other.method)
    assert str(relay.state_dict()) == str(optimizer.state_dict())
    assert type(copy.deepcopy(relay)) is type(optimizer)


def test_a_warning_is_given_once_through_any_object() -> None:
    model = Net()
    optimizer = MTLOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), UW(3))
    (x,) = batches(1)
    with pytest.warns(UserWarning, match="UW learns parameters that are in none"):
        Relay(optimizer).backward(model(x))
    optimizer.backward(model(x))
    Relay(optimizer).backward(model(x))


class Peculiar(torch.optim.SGD):
    """Methods of its own signatures, as optimizers from elsewhere have them."""

    def zero_grad(self, set_to_none: bool = False) -> None:
        super().zero_grad(set_to_none)

    def state_dict(self, note: str = "") -> dict[str, Any]:
        return {**super().state_dict(), "note": note}

    def load_state_dict(self, state_dict: dict[str, Any], wanted: str = "") -> None:
        assert state_dict.pop("note") == wanted
        super().load_state_dict(state_dict)


def test_the_base_s_own_signatures_and_defaults_stay() -> None:
    param = torch.nn.Parameter(torch.ones(2))
    optimizer = MTLOptimizer(Peculiar([param], lr=0.1), PCGrad())
    optimizer.backward([param.sum(), param.square().sum()])
    optimizer.zero_grad()
    assert param.grad is not None
    assert not param.grad.any()
    optimizer.zero_grad(set_to_none=True)
    assert param.grad is None
    optimizer.load_state_dict(optimizer.state_dict(note="here"), wanted="here")
