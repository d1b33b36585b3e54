"""Parameters that a step would have to train and that no group of the optimizer holds."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence

from torch import Tensor, nn

from mtlkernels.arguments import entries
from mtlkernels.graph import leaves

_LEVEL = 4  # from here to the caller of `backward`


def warn_of_learnt(method: nn.Module, params: Sequence[Tensor]) -> bool:
    """Warns where a method learns parameters that are not among an optimizer's; whether it did."""
    known = {id(param) for param in params}
    if all(id(param) in known for param in method.parameters()):
        return False
    warnings.warn(
        f"{type(method).__name__} learns parameters that are in none of the optimizer's groups: "
        "add_param_group them, or step and zero them yourself",
        stacklevel=_LEVEL,
    )
    return True


def warn_of_unheld(losses: object, params: Sequence[Tensor]) -> None:
    """Warns where losses reach parameters that are not among an optimizer's.

    Walks the whole graph, in Python. Inputs that require grad are no parameters. With DTensors
    nothing is said: the graph of a `fully_shard`ed model has other leaves than its parameters.

    Args:
        losses: as given to `backward`; what is no tensor is passed over.
        params: the optimizer's parameters.
    """
    if any(hasattr(param, "device_mesh") for param in params):
        return
    values = entries(losses)
    values = values.values() if isinstance(values, Mapping) else values
    if not isinstance(values, Collection) or isinstance(values, Tensor):  # an iterator is not ours
        values = [values]
    held = {id(param) for param in params}
    unheld = [
        leaf
        for leaf in leaves([loss for loss in values if isinstance(loss, Tensor)])
        if isinstance(leaf, nn.Parameter) and id(leaf) not in held
    ]
    if not unheld:
        return
    count = sum(leaf.numel() for leaf in unheld)
    shapes = ", ".join(str(tuple(leaf.shape)) for leaf in unheld[:3])
    more = ", ..." if len(unheld) > 3 else ""
    warnings.warn(
        f"the losses reach {len(unheld)} parameters that are in none of the optimizer's groups "
        f"({count} numbers, of shapes {shapes}{more}), and backward leaves their .grad alone. If "
        "this optimizer is to train them, add_param_group them. If they stay as they are, or learn "
        "from other losses, as a discriminator does, all is well: requires_grad_(False) on them "
        "during this forward saves time and this warning. If a second optimizer trains them on "
        "these losses, wrap neither, and call mtlkernels.backward(losses, the parameters of both, "
        "method) once before both step()s: two wrapped ones would each choose weights of their own",
        stacklevel=_LEVEL,
    )
