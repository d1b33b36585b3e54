"""What stops a backward, in words that say what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

_ONE_PASS = (
    "extra time",  # selective activation checkpointing
    "Untracked tensor",  # activation offloading, as in torchtune and TRL
    "already unpacked once",  # torch.utils.checkpoint
)
_WAYS = (
    "Run what is below the heads once: give features= to backward(), or set "
    'collect="batched"; or keep these activations with plain torch.utils.checkpoint or '
    "torch.autograd.graph.save_on_cpu, which allow several passes"
)

# What looking up a saved activation that is gone raises, but for torch's own RuntimeError.
_LOST = (LookupError, AssertionError, AttributeError, TypeError, ValueError)


class CannotBatchError(RuntimeError):
    """Something in a model has no backward for a batch of gradients."""


class OnePassError(RuntimeError):
    """A graph hands each activation out once, and a second backward pass asked for it again."""


@contextmanager
def explained(batched: bool = False, again: bool = False) -> Iterator[None]:
    """Raises torch's errors again, with what a person can do about them.

    Args:
        batched: whether the backward in here is one of a batch of gradients.
        again: whether another backward ran through the same part of the graph before.
    """
    try:
        yield
    except Exception as error:
        told = str(error)
        if "donated buffer" in told:
            raise RuntimeError(
                "a compiled model gave the memory of its activations away: its backward was "
                "compiled, in this process or by an earlier one that cached it, for one backward "
                "a forward, and several losses take more. Do `from torch._functorch import config` "
                "and set config.donated_buffer = False before the model first runs"
            ) from error
        if "`fabric.backward" in told:
            raise RuntimeError(
                "Fabric allows no backward but its own on what its module returned: compute the "
                "losses from model.module under fabric.autocast(), and give "
                "scaler=fabric.strategy.precision.scaler where it has one"
            ) from error
        if "use_reentrant=True" in told:  # torch's own advice does not apply here
            raise ValueError(
                "torch.utils.checkpoint with use_reentrant=True allows no backward to chosen "
                "parameters: set use_reentrant=False; in transformers that is "
                'gradient_checkpointing_kwargs={"use_reentrant": False}'
            ) from error
        if any(mark in told for mark in _ONE_PASS):
            raise OnePassError(
                "selective checkpointing or offloading hands each activation out once, and a "
                f"backward pass for each loss takes it several times. {_WAYS}"
            ) from error
        if again and isinstance(error, _LOST):  # what was saved is gone; others are a person's own
            raise OnePassError(
                f"a backward pass raised {type(error).__name__} where an earlier one passed: "
                "hooks that hand each activation out once, as offloading libraries have, allow "
                f"one pass. {_WAYS}"
            ) from error
        told_apart = isinstance(error, torch.OutOfMemoryError) or "second time" in told
        if batched and isinstance(error, RuntimeError) and not told_apart:
            raise CannotBatchError(
                "torch cannot batch this model's backward (the error above says where): leave out "
                'collect="batched", or give measure= with apply="backward"'
            ) from error
        raise
