"""The guides' loops with `Sum`, an optimizer that sees the gradients' size, and other numbers."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import torch
from pages import Model
from torch import Tensor, nn

import mtlkernels

CLIPS = (0.02, 1e6)  # always active and never: clipping alone would hide a wrong length
BATCHES = 6  # not a multiple of 4, and the last one is smaller


def losses(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    first, second = model(batch["x"])
    labels = batch["labels"]
    return {
        "near": (first - labels[:, :1]).square().mean(),
        "far": (second - labels[:, 1:]).square().mean().sqrt(),
    }


def prelude() -> dict[str, Any]:
    """What a reader has: 6 batches of 8, the last of 4."""
    torch.manual_seed(0)
    dataset = [{"x": torch.randn(6), "labels": 3 * torch.randn(2)} for _ in range(44)]
    loader = torch.utils.data.DataLoader(dataset, batch_size=8)
    assert len(loader) == BATCHES
    own = {"model": Model(), "loader": loader, "dataset": dataset, "losses": losses}
    return {"torch": torch, "mtlkernels": mtlkernels, **own}


def swapped(code: str, *pairs: tuple[str, str]) -> str:
    """The code with other numbers; raises where one is not there, as the page has changed."""
    for old, new in pairs:
        found = re.findall(old, code)
        assert found, f"{old} is not in the loop"
        code = re.sub(old, new, code)
    return code


def under_sum(code: str) -> str:
    """A loop with the plain sum for its method and SGD, under which no factor is lost."""
    code = swapped(code, (r"torch\.optim\.AdamW", "torch.optim.SGD"), (r"lr=1e-3", "lr=0.05"))
    code = re.sub(r'"(pcgrad|nashmtl)"', '"sum"', code)
    return code.replace("mtlkernels.PCGrad()", "mtlkernels.Sum()")


def moves(run: Callable[[dict[str, Any]], object]) -> dict[str, Tensor]:
    """How far each parameter moves."""
    names = prelude()
    model: nn.Module = names["model"]
    before = copy.deepcopy(model.state_dict())
    run(names)
    return {name: value.detach() - before[name] for name, value in model.state_dict().items()}


def executed(code: str) -> Callable[[dict[str, Any]], object]:
    return lambda names: exec(compile(code, "guide", "exec"), names)


def assert_same_moves(
    ours: dict[str, Tensor], own: dict[str, Tensor], tolerance: float = 1e-4
) -> None:
    assert ours.keys() == own.keys()
    for name, move in own.items():
        assert move.norm() > 0, f"{name} was not trained"
        error = (ours[name] - move).norm() / move.norm()
        assert error < tolerance, f"{name} is off by {float(error):.2g} of how far it moved"
