"""Errors of a backward pass, with what to do about them."""

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
    "Run the layers below the heads once: give features= to backward(), or set "
    'collect="batched"; or keep these activations with plain torch.utils.checkpoint or '
    "torch.autograd.graph.save_on_cpu, which allow several passes"
)

# Errors of hooks that look up a saved activation that is gone, besides torch's RuntimeError.
_LOST = (LookupError, AssertionError, AttributeError, TypeError, ValueError)


class CannotBatchError(RuntimeError):
    """An operation of the model has no backward for a batch of gradients."""


class OnePassError(RuntimeError):
    """A graph allows one backward pass, and a second one asked for a saved activation again."""


@contextmanager
def explained(batched: bool = False, again: bool = False) -> Iterator[None]:
    """A context that replaces torch's errors by ones that say what to do.

    Args:
        batched: whether the backward pass inside is for a batch of gradients.
        again: whether an earlier backward pass ran through the same part of the graph.
    """
    try:
        yield
    except Exception as error:
        text = str(error)
        if "donated buffer" in text:
            raise RuntimeError(
                "a compiled model has reused the memory of its activations: it was compiled, here "
                "or by an earlier process that cached it, for one backward pass for each "
                "forward pass, and several losses need several. Do "
                "`from torch._functorch import config` and set config.donated_buffer = False "
                "before the model first runs"
            ) from error
        if "`fabric.backward" in text:
            raise RuntimeError(
                "Fabric allows only its own backward on the outputs of its module: compute the "
                "losses from model.module under fabric.autocast(), and give "
                "scaler=fabric.strategy.precision.scaler where it has one"
            ) from error
        if "use_reentrant=True" in text:  # torch's own advice does not apply here
            raise ValueError(
                "torch.utils.checkpoint with use_reentrant=True allows no backward to chosen "
                "parameters: set use_reentrant=False; in transformers that is "
                'gradient_checkpointing_kwargs={"use_reentrant": False}'
            ) from error
        if any(mark in text for mark in _ONE_PASS):
            raise OnePassError(
                "selective checkpointing or offloading returns each activation once, and a "
                f"backward pass for each loss needs it several times. {_WAYS}"
            ) from error
        if again and isinstance(
            error, _LOST
        ):  # a saved activation is gone; other errors come from the user's code
            raise OnePassError(
                f"a backward pass raised {type(error).__name__} where an earlier one succeeded: "
                "hooks that return each activation once, as in offloading libraries, allow "
                f"one pass. {_WAYS}"
            ) from error
        other_cause = isinstance(error, torch.OutOfMemoryError) or "second time" in text
        if batched and isinstance(error, RuntimeError) and not other_cause:
            raise CannotBatchError(
                "torch cannot batch this model's backward (the error above says where): leave out "
                'collect=, or give measure= with apply="backward"'
            ) from error
        raise
