"""A wrapped optimizer under `Sum` beside a plain one: the same steps, copies and reloads."""

from __future__ import annotations

import copy
import io
import pickle
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from contract import Net, batches
from torch import Tensor, nn
from torch.optim import Optimizer

from mtlkernels import MTLOptimizer, Sum

HOW = ("", "state_dict", "deepcopy", "pickle")


def set_up(make: Callable[[nn.Module], Optimizer], wrap: bool) -> tuple[Net, Optimizer]:
    torch.manual_seed(0)
    model = Net(tasks=2)
    own = make(model)
    if callable(getattr(own, "train", None)):
        own.train()
    return model, MTLOptimizer(own, Sum()) if wrap else own


def train(
    model: Net, optimizer: Any, xs: list[Tensor], closure: str = "", pair: bool = False
) -> None:
    """A plain loop, or ours.

    Args:
        closure: "" for none; "step", "twice" for one that runs the backwards, called before the
            step too; "value" for one that returns the loss of the gradients that are there.
        pair: the closure returns a pair with the loss.
    """
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002  # the generator that optimizers draw from
    random.seed(1)
    for x in xs:

        def backward(x: Tensor = x) -> Any:
            optimizer.zero_grad()
            with torch.enable_grad():
                losses = model(x)
                if isinstance(optimizer, MTLOptimizer):
                    optimizer.backward(losses)
                else:  # sum(losses).backward(), in the order in which ours adds up
                    for loss in losses:
                        loss.backward(retain_graph=True)
            total = sum(losses).detach()
            return (losses, total) if pair else total

        total = None if closure == "step" else backward()
        if closure in ("step", "twice"):
            optimizer.step(backward)
        elif closure == "value":
            optimizer.step(lambda total=total: float(total))
        else:
            optimizer.step()


def outcome(
    make: Callable[[nn.Module], Optimizer],
    wrap: bool,
    how: str = "",
    closure: str = "",
    pair: bool = False,
) -> list[Tensor] | str:
    """The parameters after five steps, or what a copy raised; `how` copies them after three."""
    model, optimizer = set_up(make, wrap)
    if not how:
        train(model, optimizer, batches(5), closure, pair)
        return [param.detach() for param in model.parameters()]
    train(model, optimizer, batches(3), closure, pair)
    try:
        if how == "deepcopy":
            twin, other = copy.deepcopy((model, optimizer))
        elif how == "pickle":
            twin, other = pickle.loads(pickle.dumps((model, optimizer)))
        else:
            twin, other = set_up(make, wrap)
            twin.load_state_dict(model.state_dict())
            file = io.BytesIO()
            torch.save(optimizer.state_dict(), file)
            file.seek(0)
            other.load_state_dict(torch.load(file, weights_only=False))
        train(twin, other, batches(2, seed=2), closure, pair)
    except Exception as error:
        return type(error).__name__
    assert type(other) is type(optimizer)
    return [param.detach() for param in twin.parameters()]


def same(a: list[Tensor] | str, b: list[Tensor] | str) -> bool:
    if isinstance(a, str) or isinstance(b, str):
        return a == b
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
