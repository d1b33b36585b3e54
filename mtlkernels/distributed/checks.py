"""What a person gives to a step of several ranks, checked before any work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from mtlkernels.aggregation.families import keeps_weights, takes_rows
from mtlkernels.distributed.setting import Setting
from mtlkernels.engine.compile import refuse_tracing
from mtlkernels.engine.options import Options
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


def refuse_for_shards(method: object, options: Options, setting: Setting) -> None:
    """Raises where a method or an option needs whole gradients, or a look into a plain graph."""
    if takes_rows(method):
        raise NotImplementedError(
            f"{type(method).__name__} takes whole gradients, and these parameters are pieces "
            "(DTensors): use a Gram or a loss method"
        )
    if setting.gram != "exact":
        raise NotImplementedError(
            'gram="unbiased" needs each rank\'s own gradients, and of DTensors only sums over the '
            "ranks come out: leave it out"
        )
    if options.weighted or options.collect != "loop":
        raise NotImplementedError(
            "measure=, apply= and collect= look into a graph of plain tensors, and these "
            "parameters are DTensors: leave them out"
        )
    if keeps_weights(method) and hasattr(method, "heads"):
        raise NotImplementedError(
            "this method has weights of its own for heads, and a step of every= over DTensors is "
            "one backward of one weighted sum: leave every= out (NashMTL(max_norm=None) has the "
            "same weights for both)"
        )
    if keeps_weights(method) and not options.weight_heads:
        raise NotImplementedError(
            "every= takes one backward of the weighted sum, and of DTensors all of it is weighted, "
            "heads too: say weight_heads=True, or leave it out"
        )
    if options.rows_dtype is not None:
        raise NotImplementedError(
            "rows_dtype= is for rows over plain parameters: with fully_shard choose the dtypes in "
            "its MixedPrecisionPolicy"
        )


def _own(loss: Any, present: Tensor) -> Any:
    if loss is None:
        return torch.zeros((), dtype=present.dtype, device=present.device, requires_grad=True)
    return loss.full_tensor() if isinstance(loss, DTensor) else loss


def _values(given: Mapping[Any, Any] | list[Any]) -> list[Any]:
    return [value for _, value in _items(given)]


def _items(given: Mapping[Any, Any] | list[Any]) -> list[tuple[Any, Any]]:
    return list(given.items() if isinstance(given, Mapping) else enumerate(given))
