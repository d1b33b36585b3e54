"""A GradScaler's factor, which reaches .grad and never the method."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class Scaler(Protocol):
    """What is needed of a `torch.amp.GradScaler`."""

    def scale(self, outputs: Tensor) -> Tensor: ...


def scale_of(scaler: Scaler | Tensor | None, device: torch.device) -> Tensor | None:
    """A scaler's factor, on the device; it is not read."""
    if scaler is None:
        return None
    if not isinstance(scaler, Tensor):
        if not hasattr(scaler, "scale"):
            raise TypeError(
                f"scaler is a {type(scaler).__name__}: give a torch.amp.GradScaler, or its scale "
                "as a tensor of one number"
            )
        scaler = scaler.scale(torch.ones((), device=device))
    if scaler.numel() != 1:
        raise ValueError(f"the scale has shape {tuple(scaler.shape)}: it is one number")
    return scaler.reshape(())
