"""Losses in other containers than a dict or a list: their names and values count."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from contract import Net, batches
from torch import Tensor

import mtlkernels
from mtlkernels import SI, GradVac, MTLOptimizer, PCGrad
from mtlkernels.engine.base import StepArguments
from mtlkernels.engine.local import LOCAL
from mtlkernels.engine.options import Options

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = ("seg", "depth", "normal")


@dataclass
class Found:
    seg: Tensor
    depth: Tensor
    normal: Tensor | None


@dataclass(frozen=True)
class Slotted:
    __slots__ = NAMES
    seg: Tensor
    depth: Tensor
    normal: Tensor


class Named(NamedTuple):
    seg: Tensor
    depth: Tensor
    normal: Tensor | None


class Table(MutableMapping):
    """As a TensorDict without batch dimensions: it has items, and iterates over nothing."""

    def __init__(self, **values: Tensor) -> None:
        self._values = values

    def __getitem__(self, key: str) -> Tensor:
        return self._values[key]

    def __setitem__(self, key: str, value: Tensor) -> None:
        self._values[key] = value

    def __delitem__(self, key: str) -> None:
        del self._values[key]

    def __len__(self) -> int:
        return 0

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def items(self) -> Any:
        return self._values.items()


class Items:
    """No mapping, and has items."""

    def __init__(self, **values: Tensor) -> None:
        self._values = values

    def items(self) -> Any:
        return self._values.items()


class Read(Mapping):
    """A mapping that is no dict."""

    def __init__(self, **values: Tensor) -> None:
        self._values = values

    def __getitem__(self, key: str) -> Tensor:
        return self._values[key]

    def __len__(self) -> int:
        return len(self._values)

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)


CONTAINERS = [Found, Slotted, Named, Table, Items, Read]
every_container = pytest.mark.parametrize("container", CONTAINERS, ids=lambda c: c.__name__)
(X,) = batches(1)


@pytest.mark.parametrize("method", [PCGrad, GradVac, SI, mtlkernels.GradDrop])
@every_container
def test_a_container_is_its_names_and_values(container: Any, method: Any) -> None:
    models = [Net(), Net()]
    reports = []
    for model, form in zip(models, (dict, container), strict=True):
        losses = form(**dict(zip(NAMES, model(X), strict=True)))
        optimizer = MTLOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), method())
        reports.append(optimizer.backward(losses))
    for a, b in zip(*(model.parameters() for model in models), strict=True):
        assert (a.grad is None) == (b.grad is None)
        assert a.grad is None or torch.equal(a.grad, b.grad)
    assert reports[1].tasks == NAMES
    assert torch.equal(reports[0].losses, reports[1].losses)


@every_container
def test_what_is_wrong_with_a_value_is_said_by_its_name(container: Any) -> None:
    model = Net()
    first, second, third = model(X)
    params = list(model.parameters())
    with pytest.raises(TypeError, match="loss 'depth' is a float"):
        mtlkernels.backward(container(seg=first, depth=0.5, normal=third), params, PCGrad())
    with pytest.raises(ValueError, match="'seg' and 'normal' are the same tensor"):
        mtlkernels.backward(container(seg=first, depth=second, normal=first), params, PCGrad())
    third = third.expand(2)
    with pytest.raises(ValueError, match="loss 'normal' has shape"):
        mtlkernels.backward(container(seg=first, depth=second, normal=third), params, PCGrad())


@pytest.mark.parametrize("container", [Found, Named])
def test_a_field_that_is_none_is_a_task_without_data(container: Any) -> None:
    models = [Net(), Net()]
    for model, form in zip(models, (dict, container), strict=True):
        first, second, _ = model(X)
        losses = form(seg=first, depth=second, normal=None)
        mtlkernels.backward(losses, list(model.parameters()), PCGrad())
    for a, b in zip(*(model.parameters() for model in models), strict=True):
        assert (a.grad is None) == (b.grad is None)
        assert a.grad is None or torch.equal(a.grad, b.grad)


def test_the_class_in_place_of_an_object_is_told() -> None:
    with pytest.raises(TypeError):
        mtlkernels.backward(Found, list(Net().parameters()), PCGrad())


def test_an_optimizer_that_does_not_hold_all_says_so_for_every_container() -> None:
    for container in CONTAINERS:
        model = Net()
        losses = container(**dict(zip(NAMES, model(X), strict=True)))
        optimizer = MTLOptimizer(torch.optim.SGD([model.trunk.weight], lr=0.1), PCGrad())
        with pytest.warns(UserWarning, match="reach 3 parameters that are in none"):
            optimizer.backward(losses)


@pytest.mark.parametrize("accumulate", [False, True])
@every_container
def test_over_ranks_a_container_has_names_too(container: Any, accumulate: bool) -> None:
    """The engine names tasks as the container does, in both kinds of step."""
    model = Net()
    losses, params = container(**dict(zip(NAMES, model(X), strict=True))), list(model.parameters())
    given = StepArguments(losses, params, GradVac(), Options())
    if accumulate:
        rows = LOCAL.collect_step(given)
        assert rows.named
        assert rows.tasks == NAMES
    else:
        assert LOCAL.step(given).tasks == NAMES
