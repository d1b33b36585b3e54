"""The Python blocks of the README and of docs/, and what they need: a model, batches, losses."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from compilers import has_cpp_compiler
from frameworks import FRAMEWORKS, give_torchvision
from language_model import language_model
from torch import Tensor, nn
from torch_versions import compiles_steps

import mtlkernels

ROOT = Path(__file__).parents[2]
GENERATED = ("_build", "methods")  # folders of docs/ that the build of the site fills
ON_SEVERAL_RANKS = ("docs/guides/several_gpus.md", "docs/distributed.md")  # run by torchrun
# The sections of these pages stand for themselves; elsewhere a page is read from top to bottom.
BY_SECTION = ("docs/guides/frameworks.md", "docs/guides/compile.md")
IMPORTS = (
    r"^(import|from) (lightning|accelerate|transformers|trl|mmengine|deepxde|monai|torch_rechub"
    r"|mtlkernels\.integrations\.libmtl)\b"
)


def pages() -> list[str]:
    """The README, CONTRIBUTING.md and every hand-written page of docs/."""
    found = [path.relative_to(ROOT) for path in (ROOT / "docs").rglob("*.md")]
    written = [path.as_posix() for path in found if path.parts[1] not in GENERATED]
    return ["README.md", "CONTRIBUTING.md", *sorted(written)]


def blocks(text: str) -> list[str]:
    """The text's Python blocks, in order."""
    return re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)


def code_of(page: str) -> dict[str, str]:
    """What to run of a page: heading -> its blocks in one; "" for a page that is run as a whole."""
    text = (ROOT / page).read_text()
    if page not in BY_SECTION:
        return {"": "\n".join(blocks(text))} if blocks(text) else {}
    start, *sections = re.split(r"^## ", text, flags=re.M)
    named = {"": start, **{section.partition("\n")[0]: section for section in sections}}
    return {name: "\n".join(blocks(section)) for name, section in named.items() if blocks(section)}


# The loops that other tests compare with those of plain torch and of other libraries.
LOOPS = {
    **{
        name: code_of(f"docs/guides/{name}.md")[""]
        for name in ("plain", "mixed_precision", "accumulation", "cheap_steps", "fixed_loop")
    },
    **code_of("docs/guides/frameworks.md"),
    "compile_step": code_of("docs/guides/compile.md")["One graph for the whole step"],
}


def marks(code: str) -> list[pytest.MarkDecorator]:
    """What a loop needs that may not be there."""
    if re.search(IMPORTS, code, re.M):
        return [*FRAMEWORKS]
    if "torch.compile(optimizer" in code:
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


def prelude(code: str = "") -> dict[str, Any]:
    """What a reader of some code has: the names that the pages say are theirs."""
    torch.manual_seed(0)
    dataset = [{"x": torch.randn(6), "labels": torch.randn(2)} for _ in range(32)]
    loader = torch.utils.data.DataLoader(dataset, batch_size=8)
    own = {"model": Model(), "loader": loader, "dataset": dataset, "losses": losses}
    if "import trl" in code:
        own |= language_model()
    if "integrations.libmtl" in code:
        give_torchvision()
    return {"torch": torch, "mtlkernels": mtlkernels, **own}
