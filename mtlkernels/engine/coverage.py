"""Warnings of parameters that a step should train but that are in no group of the optimizer."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence

from torch import Tensor, nn

from mtlkernels.autograd.graph import leaves
from mtlkernels.engine.parameters import entries

_LEVEL = 4  # from here to the caller of `backward`


def warn_of_learned(method: nn.Module, params: Sequence[Tensor]) -> bool:
    """Warns if the optimizer lacks parameters that the method learns; returns whether it did."""
    known = {id(param) for param in params}
    if all(id(param) in known for param in method.parameters()):
        return False
    warnings.warn(
        f"{type(method).__name__} learns parameters that are in none of the optimizer's groups: "
        "add them with add_param_group, or call step and zero_grad for them yourself",
        stacklevel=_LEVEL,
    )
    return True


def warn_of_missing(losses: object, params: Sequence[Tensor]) -> None:
    """Warns if losses reach parameters that the optimizer lacks.

    Walks the whole graph, in Python. Inputs that require grad do not count. Does nothing for
    DTensors: the leaves in the graph of a `fully_shard`ed model are not its parameters.

    Args:
        losses: as given to `backward`; anything but tensors is ignored.
        params: the optimizer's parameters.
    """
    if any(hasattr(param, "device_mesh") for param in params):
        return
    values = entries(losses)
    values = values.values() if isinstance(values, Mapping) else values
    if not isinstance(values, Collection) or isinstance(
        values, Tensor
    ):  # not an iterator, which this would use up
        values = [values]
    known = {id(param) for param in params}
    missing = [
        leaf
        for leaf in leaves([loss for loss in values if isinstance(loss, Tensor)])
        if isinstance(leaf, nn.Parameter) and id(leaf) not in known
    ]
    if not missing:
        return
    count = sum(leaf.numel() for leaf in missing)
    shapes = ", ".join(str(tuple(leaf.shape)) for leaf in missing[:3])
    more = ", ..." if len(missing) > 3 else ""
    warnings.warn(
        f"the losses reach {len(missing)} parameters that are in none of the optimizer's groups "
        f"({count} numbers, of shapes {shapes}{more}), and backward leaves their .grad alone. If "
        "this optimizer is to train them, add_param_group them. If they stay as they are, or learn "
        "from other losses, as a discriminator does, all is well: requires_grad_(False) on them "
        "during this forward saves time and this warning. If a second optimizer trains them on "
        "these losses, wrap neither, and call mtlkernels.backward(losses, the parameters of both, "
        "method) once before both step()s: two wrapped ones would each choose weights of their own",
        stacklevel=_LEVEL,
    )
