"""The modes of torch that GPU tests change are put back, with a torch that warns about them."""

from __future__ import annotations

import warnings

import pytest
import torch
from gpu_tools import errors_on_sync


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
