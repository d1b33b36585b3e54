"""The README's loops, and what they need to run: a model, batches and losses."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from compilers import has_cpp_compiler
from frameworks import FRAMEWORKS
from torch import Tensor, nn
from torch_versions import compiles_steps

import mtlkernels

README = Path(__file__).parents[2] / "README.md"


SECTION = "In your loop"


IMPORTS = r"^import (lightning|accelerate|transformers)\b"


def section(text: str, level: int, heading: str) -> str:
    """What stands below a heading, up to the next one of its level or above."""
    mark = "#" * level
    found = re.search(
        rf"^{mark} {re.escape(heading)}\n(.*?)(?=^#{{1,{level}}} |\Z)", text, re.M | re.S
    )
    assert found, f"the README has no heading {heading!r}"
    return found[1]


def loops() -> dict[str, str]:
    """Heading -> its Python blocks, one after the other."""
    text = section(README.read_text(), 2, SECTION)
    headings = re.findall(r"^### (.+)$", text, re.M)
    return {
        heading: "\n".join(
            re.findall(r"^```python\n(.*?)^```", section(text, 3, heading), re.M | re.S)
        )
        for heading in headings
    }


LOOPS = loops()


def marks(code: str) -> list[pytest.MarkDecorator]:
    """What a loop needs that may not be there."""
    if re.search(IMPORTS, code, re.M):
        return [*FRAMEWORKS]
    if "compile" in code:
        inductor = pytest.mark.skipif(not has_cpp_compiler(), reason="no C++ compiler for inductor")
        return [inductor, compiles_steps] if "compile_step" in code else [inductor]
    return []


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Linear(6, 8)
        self.heads = nn.ModuleList(nn.Linear(8, 1) for _ in range(2))

    def forward(self, x: Tensor) -> list[Tensor]:
        features = torch.tanh(self.trunk(x))
        return [head(features) for head in self.heads]


def losses(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    first, second = model(batch["x"])
    labels = batch["labels"]
    return {
        "near": (first - labels[:, :1]).square().mean(),
        "far": (second - labels[:, 1:]).abs().mean(),
    }


def prelude() -> dict[str, Any]:
    """What a reader has: the names that the README says are theirs."""
    torch.manual_seed(0)
    dataset = [{"x": torch.randn(6), "labels": torch.randn(2)} for _ in range(32)]
    loader = torch.utils.data.DataLoader(dataset, batch_size=8)
    own = {"model": Model(), "loader": loader, "dataset": dataset, "losses": losses}
    return {"torch": torch, "mtlkernels": mtlkernels, **own}
