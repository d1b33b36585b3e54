"""What a person gives to a step of several ranks, checked before any work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from mtlkernels.arguments import Losses, named_losses
from mtlkernels.backprop import refuse_tracing


def present_losses(
    losses: Losses, params: Sequence[Tensor]
) -> tuple[tuple[str, ...], list[Tensor]]:
    """`named_losses` where None stands for a task that this rank has no data for.

    Such a loss is 0 and reaches nothing. A loss that is a DTensor becomes a plain tensor.
    """
    given: Any = losses
    if not isinstance(given, Tensor | Mapping) and isinstance(given, Sequence):
        given = list(given)
    if isinstance(given, Mapping | list):
        present = next((x for x in _values(given) if isinstance(x, Tensor)), params[0])
        own = {k: _own(v, present) for k, v in _items(given)}
        given = own if isinstance(given, Mapping) else list(own.values())
    return named_losses(given)


def refuse_compiling() -> None:
    """Raises while torch.compile traces."""
    if torch.compiler.is_compiling():
        refuse_tracing(
            "inside torch.compile the collectives of several ranks cannot be traced: compile the "
            "model alone and call backward outside"
        )


def _own(loss: Any, present: Tensor) -> Any:
    if loss is None:
        return torch.zeros((), dtype=present.dtype, device=present.device, requires_grad=True)
    return loss.full_tensor() if isinstance(loss, DTensor) else loss


def _values(given: Mapping[Any, Any] | list[Any]) -> list[Any]:
    return [value for _, value in _items(given)]


def _items(given: Mapping[Any, Any] | list[Any]) -> list[tuple[Any, Any]]:
    return list(given.items() if isinstance(given, Mapping) else enumerate(given))
