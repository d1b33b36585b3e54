"""A method's state as an entry of an optimizer's first parameter group: checkpoints keep it there.

The entry is a dict. "small" holds, as bytes, all that is not as long as the gradients: checkpoint
libraries carry bytes whole, whereas torch.distributed.checkpoint loads a tensor only into one of
the same shape, which a method that has not met its tasks yet does not have. What is as long as the
gradients (`growing`) stands beside it as tensors.

Between saving and loading the entry is the method's name: from a flattened state dict
torch.distributed.checkpoint restores only those entries that the optimizer's own groups have.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from mtlkernels.methods import GramMethod, LossMethod, RowMethod
from mtlkernels.methods.tasks import NEWER

Method = GramMethod | LossMethod | RowMethod

ENTRY = "mtl_state"
_SMALL = "small"


def put(groups: list[dict[str, Any]], method: Method) -> None:
    """Writes the method's state, where it has one, into the first group."""
    state = method.state_dict()
    if not state:
        return
    long = {key: value for key, value in state.items() if key.startswith(method.growing)}
    small = {key: value.cpu() for key, value in state.items() if key not in long}
    file = io.BytesIO()
    torch.save((list(long), small), file)
    groups[0][ENTRY] = {_SMALL: file.getvalue(), **long}


def check(groups: list[dict[str, Any]], method: Method) -> dict[str, Tensor]:
    """The state in the first group, empty where it holds none.

    Raises:
        ValueError: it is the state of another method or of other tasks, or not the whole of it.
    """
    entry = groups[0].get(ENTRY)
    if not isinstance(entry, dict):
        return {}
    names, small = torch.load(io.BytesIO(entry[_SMALL]), weights_only=True)
    if _fixed(method, small) != _fixed(method, method.state_dict()):
        method.check_state(small)  # which may say more of what differs
        raise ValueError(
            f"the optimizer state holds the state of another method ({', '.join(small)}) than "
            f"{type(method).__name__}: nothing was loaded. Give the method that it was saved with, "
            f'or drop "{ENTRY}" from its first parameter group'
        )
    missing = [name for name in names if name not in entry]
    if missing:
        raise ValueError(
            f"the optimizer state lacks {', '.join(missing)} of {type(method).__name__}: nothing "
            "was loaded. torch.distributed.checkpoint reads only tensors that the optimizer has "
            "already: take one training step before it loads"
        )
    state = {**small, **{name: entry[name] for name in names}}
    method.check_state(state)
    return state


def take(groups: list[dict[str, Any]], method: Method) -> None:
    """Moves the state that an optimizer has loaded from its first group to the method."""
    state = check(groups, method)
    if state:
        method.load_state_dict(state)
    mark(groups, method)


def mark(groups: list[dict[str, Any]], method: Method) -> None:
    """Names the method in the first group, where it has a state to save."""
    if method.growing or method.state_dict():
        groups[0][ENTRY] = type(method).__name__
    else:
        groups[0].pop(ENTRY, None)


def _fixed(method: Method, keys: Iterable[str]) -> set[str]:
    """The keys of a method's state that it has before its first call too, in states of any age."""
    return {key for key in keys if not key.startswith(method.growing) and not key.endswith(NEWER)}
