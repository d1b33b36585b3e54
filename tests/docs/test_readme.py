"""The README's loops run as they stand there.

Each Python block of the section "In your loop" is executed with a model, a loader and a function of
losses in its namespace; afterwards the model must have been trained.
"""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from readme import LOOPS, marks, prelude


def test_the_section_has_loops() -> None:
    assert "Plain" in LOOPS
    assert all("backward" in code for code in LOOPS.values())


# torch's own: inductor's modules are decorated with it when they are first imported.
@pytest.mark.filterwarnings("ignore:.torch.:DeprecationWarning", "ignore:.torch.:FutureWarning")
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    "heading",
    [pytest.param(name, marks=marks(code)) for name, code in LOOPS.items()],
)
def test_a_loop_of_the_readme_trains(
    heading: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = prelude()
    model = names["model"]
    before = copy.deepcopy(model.state_dict())
    exec(compile(LOOPS[heading], f"README.md, {heading}", "exec"), names)
    for name, value in model.state_dict().items():
        assert value.isfinite().all()
        assert not torch.equal(value.cpu(), before[name]), f"{name} was not trained"
