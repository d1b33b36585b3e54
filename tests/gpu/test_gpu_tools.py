"""Warnings that would fail GPU tests, and the modes of torch that they change and put back."""

from __future__ import annotations

import ast
import warnings
from pathlib import Path

import pytest
import torch
from gpu_tools import errors_on_sync

import mtlkernels


@pytest.fixture
def modes(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The modes chosen, in a torch that warns at each choice, as torch does at the first."""
    chosen: list[object] = [0]

    def choose(mode: object) -> None:
        chosen.append(mode)
        warnings.warn(
            "Synchronization debug mode is a prototype feature", UserWarning, stacklevel=2
        )

    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", choose)
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: chosen[-1])
    return chosen


def test_the_mode_is_put_back(modes: list[object]) -> None:
    with errors_on_sync():
        assert modes == [0, "error"]
    assert modes == [0, "error", 0]


def test_the_mode_is_put_back_after_an_error(modes: list[object]) -> None:
    with pytest.raises(RuntimeError, match="a synchronisation"), errors_on_sync():
        raise RuntimeError("a synchronisation")
    assert modes == [0, "error", 0]


def test_every_triton_launch_says_whether_products_and_sums_are_fused() -> None:
    """Triton 3.9 warns where a launch leaves it to the default, which 3.10 changes."""
    folder = Path(mtlkernels.__file__).parent / "triton_kernels"
    launches = [
        node
        for name in ("launch", "launchers")
        for node in ast.walk(ast.parse((folder / f"{name}.py").read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Subscript)
    ]
    assert len(launches) == 7
    for call in launches:
        assert "enable_fp_fusion" in {word.arg for word in call.keywords}, ast.unparse(call)
