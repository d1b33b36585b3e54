"""What a person gives to a step of several ranks, checked before any work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from mtlkernels.engine.compile import refuse_tracing
from mtlkernels.engine.parameters import Given, Losses, entries, given_losses


def losses_of_rank(losses: Losses, params: Sequence[Tensor]) -> Given:
    """`given_losses` with a value for each task: for None one that is 0 and reaches nothing.

    `present` holds the tasks of which this rank has a loss, which may be none. A loss that is a
    DTensor becomes a plain tensor.
    """
    given: Any = entries(losses)
    if not isinstance(given, Tensor | Mapping) and isinstance(given, Sequence):
        given = list(given)
    if not isinstance(given, Mapping | list):
        return given_losses(given)
    model = next((x for x in _values(given) if isinstance(x, Tensor)), params[0])
    own = {k: _own(v, model) for k, v in _items(given)}
    found = given_losses(own if isinstance(given, Mapping) else list(own.values()))
    here = tuple(t for t, value in enumerate(_values(given)) if value is not None)
    return found._replace(present=here)


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
