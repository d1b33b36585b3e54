"""Optimizers of every kind of class can be wrapped; where wrapping fails, nothing changes."""

from __future__ import annotations

import abc
import copy
import pickle
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar

import pytest
import torch
from contract import Net, assert_same, batches, train
from torch import Tensor
from torch.optim import SGD, AdamW, Optimizer

import mtlkernels
from mtlkernels import CAGrad, MTLOptimizer, PCGrad, Sum, Tracked

pytestmark = pytest.mark.usefixtures("one_thread")

Item = TypeVar("Item")
BEFORE, AFTER = batches(3), batches(2, seed=2)


class Abstract(abc.ABC, Optimizer):
    """As pytorch_optimizer's: ABC comes first, and the class has an abstract method."""

    def __init__(self, params: Iterable[Tensor], lr: float = 0.05) -> None:
        super().__init__(params, {"lr": lr})

    @abc.abstractmethod
    def scaled(self, grad: Tensor) -> Tensor: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    state = self.state[param]
                    state["count"] = state.get("count", 0) + 1
                    param.sub_(self.scaled(param.grad) * group["lr"] / state["count"])

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)


class Concrete(Abstract):
    def scaled(self, grad: Tensor) -> Tensor:
        return grad


class Signed(Concrete):
    def scaled(self, grad: Tensor) -> Tensor:
        return super().scaled(grad).sign()

    def zero_grad(self, set_to_none: bool = True) -> None:
        super().zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict()


class Parametrised(Generic[Item], SGD):
    """Generic comes first."""


class Both(abc.ABC, Generic[Item], AdamW):
    """Both come first."""


class Plain:
    """A base with a dictionary of its own, before torch's."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        super().zero_grad(set_to_none)


class Mixed(Plain, SGD):
    pass


class Slotted(SGD):
    __slots__ = ("extra",)

    def __init__(self, params: Iterable[Tensor], lr: float = 0.05) -> None:
        super().__init__(params, lr=lr)
        self.extra = 3


class Meta(type):
    """A metaclass that changes what it makes."""

    def __new__(mcs, name: str, bases: tuple[type, ...], names: dict[str, Any]) -> Any:
        return super().__new__(mcs, name, bases, {**names, "made_by": mcs.__name__})


class Managed(SGD, metaclass=Meta):
    pass


class Guarded(SGD):
    """Takes no attribute that it does not know, once it is set up."""

    def __init__(self, params: Iterable[Tensor], lr: float = 0.05) -> None:
        super().__init__(params, lr=lr)
        self.sealed = True

    def __setattr__(self, name: str, value: Any) -> None:
        if "sealed" in vars(self) and (name == "__class__" or not hasattr(self, name)):
            raise AttributeError(f"no attribute {name}")
        super().__setattr__(name, value)


class Holding(SGD):
    """Keeps names that wrapping uses, or might."""

    def __init__(self, params: Iterable[Tensor], lr: float = 0.05) -> None:
        super().__init__(params, lr=lr)
        self._base = AdamW([torch.nn.Parameter(torch.zeros(1))])
        self.base = self._base
        self.optimizer = self._base


class Reduced(SGD):
    """Copies itself in a way of its own, with what torch would lose."""

    def __init__(self, params: Iterable[Tensor], note: str = "") -> None:
        super().__init__(params, lr=0.05)
        self.note = note

    def __reduce__(self) -> tuple[Any, ...]:
        state = {**self.__getstate__(), "hooks": 1}
        return type(self), (self.param_groups, self.note + "copied"), state


class Unhooked(SGD):
    """Never calls torch's own __init__, as optimizers in front of others do."""

    def __init__(self, params: Iterable[Tensor], lr: float = 0.05) -> None:
        self.inner = SGD(params, lr=lr, momentum=0.9)
        self.defaults = self.inner.defaults
        self._optimizer_step_pre_hooks = OrderedDict()
        self._optimizer_step_post_hooks = OrderedDict()
        self._patch_step_function()

    param_groups = property(lambda self: self.inner.param_groups)
    state = property(lambda self: self.inner.state)

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.inner.zero_grad(set_to_none)

    def step(self, closure: Callable[[], Any] | None = None) -> None:
        self.inner.step(closure)

    def state_dict(self) -> dict[str, Any]:
        return {"inner": self.inner.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.inner.load_state_dict(state_dict["inner"])

    def __getstate__(self) -> dict[str, Any]:
        return {"inner": self.inner, "defaults": self.defaults}


CLASSES: list[type[Optimizer]] = [
    *(Concrete, Signed, Parametrised, Both, Mixed, Slotted, Managed, Guarded, Holding, Reduced),
    Unhooked,
]
every_class = pytest.mark.parametrize("cls", CLASSES)


@every_class
def test_wrapping_changes_no_step(cls: type[Optimizer]) -> None:
    model, plain = Net(), Net()
    alone, own = cls(plain.parameters()), cls(model.parameters())
    optimizer = MTLOptimizer(own, Sum())
    assert optimizer is own
    assert isinstance(optimizer, MTLOptimizer)
    assert issubclass(type(optimizer), MTLOptimizer)
    assert isinstance(optimizer, cls)
    assert type(type(optimizer)) is type(cls)
    for x in BEFORE:
        alone.zero_grad()
        for loss in plain(x):
            loss.backward(retain_graph=True)
        alone.step()
        train(model, optimizer, [x])
    assert_same(model, plain)
    assert not torch.equal(model.trunk.weight, Net().trunk.weight)


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "state_dict"])
@every_class
def test_copies_continue_alike(cls: type[Optimizer], how: str) -> None:
    model = Net()
    optimizer = MTLOptimizer(cls(model.parameters()), Tracked(PCGrad(seed=4)))
    train(model, optimizer, BEFORE)
    if how == "state_dict":
        twin = copy.deepcopy(model)
        other = MTLOptimizer(cls(twin.parameters()), Tracked(PCGrad(seed=99)))
        other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    else:
        both = (model, optimizer)
        twin, other = copy.deepcopy(both) if how == "deepcopy" else pickle.loads(pickle.dumps(both))
    assert type(other) is type(optimizer)
    assert other.method is not optimizer.method
    train(model, optimizer, AFTER)
    train(twin, other, AFTER)
    assert_same(model, twin)


def test_a_class_copies_itself_in_its_own_way() -> None:
    optimizer = MTLOptimizer(Reduced(Net().parameters(), "a note, "), Sum())
    twin = copy.deepcopy(optimizer)
    assert isinstance(twin, MTLOptimizer)
    assert twin.note == "a note, copied"


@every_class
def test_hooks_and_a_scheduler_work_once_each(cls: type[Optimizer]) -> None:
    calls: list[str] = []
    model = Net()
    own = cls(model.parameters())
    own.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer = MTLOptimizer(own, Sum())
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    if cls is not Guarded:  # which refuses what a scheduler sets
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    for x in BEFORE:
        train(model, optimizer, [x])
        if cls is not Guarded:
            schedule.step()
    assert calls == ["before", "after"] * 3


@pytest.mark.parametrize("cls", CLASSES[:-1])  # the last one's groups are another optimizer's
def test_parameters_can_be_added_and_dropped_gradients_stay_dropped(cls: type[Optimizer]) -> None:
    model = Net()
    optimizer = MTLOptimizer(cls([model.trunk.weight]), Sum())
    optimizer.add_param_group({"params": list(model.heads.parameters())})
    optimizer.backward(model(BEFORE[0]), accumulate=True)
    optimizer.zero_grad()
    with pytest.raises(ValueError, match="nothing was accumulated"):
        optimizer.combine()
    train(model, optimizer, BEFORE)
    assert not torch.equal(model.heads[0].weight, Net().heads[0].weight)


# -------------------------------------------------------------------------- what cannot be wrapped


class Final(SGD):
    """A class that allows no subclass."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        raise TypeError("Final has no subclasses")


class Asking(SGD):
    """A class whose subclasses have to say something."""

    def __init_subclass__(cls, *, name: str, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)


class Sealing(type):
    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        return super().__call__(*args, **kwargs)

    def __new__(mcs, name: str, bases: tuple[type, ...], names: dict[str, Any]) -> Any:
        if any(isinstance(base, Sealing) for base in bases):
            raise RuntimeError("sealed")
        return super().__new__(mcs, name, bases, names)


class Sealed(SGD, metaclass=Sealing):
    pass


class Widening(type):
    def __new__(mcs, name: str, bases: tuple[type, ...], names: dict[str, Any]) -> Any:
        slots = {"__slots__": ("more",)} if name.startswith("MTL") else {}
        return super().__new__(mcs, name, bases, {**names, **slots})


class Wide(SGD, metaclass=Widening):
    pass


class InBackward(SGD):
    """Updates parameters while their backward runs, as LOMO does."""

    def step(self, closure: Callable[[], Any] | None = None) -> None:
        raise NotImplementedError


class SecondOrder(SGD):
    """Differentiates .grad, as AdaHessian does."""

    def step(self, closure: Callable[[], Any] | None = None) -> None:
        self.set_hessian()
        super().step(closure)

    def set_hessian(self) -> None:
        params = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        grads = [p.grad for p in params]
        found = torch.autograd.grad(grads, params, [torch.ones_like(g) for g in grads])
        for param, curvature in zip(params, found, strict=True):
            param.grad = param.grad.detach() / (1 + curvature.abs())


@pytest.mark.parametrize(
    ("cls", "told"),
    [(InBackward, "implements no step"), (SecondOrder, "create_graph=True")],
)
def test_what_does_not_step_on_a_balanced_gradient_is_refused(
    cls: type[Optimizer], told: str
) -> None:
    own = cls(Net().parameters(), lr=0.1)
    before = copy.deepcopy(marks(own)[:3])
    with pytest.raises(NotImplementedError, match=told):
        MTLOptimizer(own, PCGrad())
    assert marks(own)[:3] == before


@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph")
def test_second_order_steps_take_the_weights_of_a_balanced_backward() -> None:
    """As the refusal says."""
    models = [Net() for _ in range(2)]
    for balanced, model in enumerate(models):
        own = SecondOrder(model.parameters(), lr=0.1)
        for x in BEFORE:
            losses = model(x)
            weights = torch.ones(3)
            if balanced:
                params = list(model.parameters())
                report = mtlkernels.backward(losses, params, Sum(), retain_graph=True)
                weights = report.weights
            own.zero_grad()
            (weights * torch.stack(losses)).sum().backward(create_graph=True)
            own.step()
    for a, b in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(a, b)


class Front:
    """Steps another optimizer and is none, as schedulefree's ScheduleFreeWrapper."""

    def __init__(self, inner: Optimizer) -> None:
        self.inner = inner

    def step(self) -> None:
        self.inner.step()


def test_what_is_no_optimizer_but_steps_one_is_pointed_to_the_one_inside() -> None:
    model = Net()
    with pytest.raises(
        TypeError, match=r"base is a Front, which is not a .*: wrap the optimizer inside"
    ):
        MTLOptimizer(Front(SGD(model.parameters(), lr=0.1)), PCGrad())
    inner = MTLOptimizer(SGD(model.parameters(), lr=0.1), PCGrad())  # what it points to
    front = Front(inner)
    inner.backward(model(BEFORE[0]))
    front.step()
    assert not torch.equal(model.trunk.weight, Net().trunk.weight)


def marks(optimizer: Optimizer) -> tuple[Any, ...]:
    """All that wrapping could have left on it."""
    groups = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    return type(optimizer), set(vars(optimizer)), groups, vars(type(optimizer)).keys()


@pytest.mark.parametrize("cls", [Final, Asking, Sealed, Wide])
def test_a_class_that_cannot_be_extended_is_left_alone(cls: type[Optimizer]) -> None:
    model = Net()
    own = cls(model.parameters(), lr=0.1)
    before = copy.deepcopy(marks(own)[:3])
    for _ in range(2):
        with pytest.raises(TypeError, match=rf"{cls.__name__} cannot be wrapped, .* leave it as"):
            MTLOptimizer(own, PCGrad())
        assert marks(own)[:3] == before
        assert not isinstance(own, MTLOptimizer)
    assert not hasattr(own, "_mtl")
    model(BEFORE[0])[0].backward()
    own.step()
    assert not torch.equal(model.trunk.weight, Net().trunk.weight)


@pytest.mark.parametrize("cls", [SGD, Concrete])
def test_wrapping_that_fails_at_any_point_leaves_no_mark(
    cls: type[Optimizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = MTLOptimizer(cls(Net().parameters(), lr=0.1), PCGrad()).state_dict()
    own = cls(Net().parameters(), lr=0.1)
    own.load_state_dict(saved)
    before = copy.deepcopy(marks(own)[:3])
    with pytest.raises(ValueError, match="state of another method"):
        MTLOptimizer(own, CAGrad())
    assert marks(own)[:3] == before
    with pytest.raises(ValueError, match="every"):
        MTLOptimizer(own, PCGrad(), every=0)
    with pytest.raises(TypeError, match="takes no weigh_heads"):
        MTLOptimizer(own, PCGrad(), weigh_heads=True)
    with pytest.raises(ValueError, match="check_ranks= applies to several ranks"):
        MTLOptimizer(own, PCGrad(), check_ranks=True)
    assert marks(own)[:3] == before

    def fail(*_: object) -> None:
        raise RuntimeError("in the middle")

    method = PCGrad()
    monkeypatch.setattr(method, "load_state_dict", fail)
    with pytest.raises(RuntimeError, match="in the middle"):
        MTLOptimizer(own, method)
    assert marks(own)[:3] == before
    assert not isinstance(own, MTLOptimizer)
    assert isinstance(MTLOptimizer(own, PCGrad()), MTLOptimizer)
