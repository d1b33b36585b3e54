"""Numbers and names of tasks: reading, selecting, and saving them as tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

Numbers = Sequence[float] | Mapping[str, float] | Tensor


def numbers_of(numbers: Any) -> tuple[Tensor, tuple[str, ...]]:
    """The given numbers, (T) or scalar, float64, and the task names if given as a mapping.

    Raises:
        TypeError: they are not real numbers.
    """
    given = numbers
    names: tuple[str, ...] = ()
    if isinstance(numbers, Mapping):
        names, numbers = tuple(map(str, numbers)), list(numbers.values())
    try:
        found = torch.as_tensor(numbers)
    except (TypeError, RuntimeError, ValueError):  # None, text or lists of several lengths
        found = None
    if found is None or found.is_complex():
        raise TypeError(
            f"{given!r} are not numbers of tasks: give one real number per task, in a list or by "
            'name, {"seg": 1, "depth": 10}'
        )
    return torch.as_tensor(numbers, dtype=torch.float64).detach().clone(), names


def pick(tensor: Tensor, positions: Sequence[int], dim: int = 0) -> Tensor:
    """The entries at some positions; uses views, so that no index is copied to the device."""
    entries = tensor.unbind(dim)
    return torch.stack([entries[p] for p in positions], dim)


def encoded(names: Sequence[Any], device: torch.device) -> Tensor:
    """Names, or other JSON data, as a tensor of bytes, which can be saved like any tensor."""
    text = json.dumps(names).encode() if names else b""
    return torch.tensor(list(text), dtype=torch.uint8, device=device)


def decoded(saved: Tensor | None) -> tuple[Any, ...]:
    """The inverse of `encoded`; () if there is nothing."""
    if saved is None or saved.numel() == 0:
        return ()
    return tuple(json.loads(bytes(saved.tolist())))
