"""Numbers and names of tasks: as a person gives them, as they are saved, some of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

Numbers = Sequence[float] | Mapping[str, float] | Tensor


def numbers_of(numbers: Any) -> tuple[Tensor, tuple[str, ...]]:
    """Given numbers, (T) or a scalar float64, and the tasks' names where they came by name."""
    names: tuple[str, ...] = ()
    if isinstance(numbers, Mapping):
        names, numbers = tuple(map(str, numbers)), list(numbers.values())
    return torch.as_tensor(numbers, dtype=torch.float64).detach().clone(), names


def pick(tensor: Tensor, positions: Sequence[int], dim: int = 0) -> Tensor:
    """Entries at some positions; built from views, so that no index goes to the device."""
    found = tensor.unbind(dim)
    return torch.stack([found[p] for p in positions], dim)


def encoded(names: Sequence[Any], device: torch.device) -> Tensor:
    """Names, or other plain data, as bytes, which every way of saving tensors takes."""
    text = json.dumps(names).encode() if names else b""
    return torch.tensor(list(text), dtype=torch.uint8, device=device)


def decoded(saved: Tensor | None) -> tuple[Any, ...]:
    """What `encoded` made bytes of; () for none."""
    if saved is None or saved.numel() == 0:
        return ()
    return tuple(json.loads(bytes(saved.tolist())))
