"""Ops of the row methods: directions by element, and states as long as the gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mtlkernels import reference
from mtlkernels.ops.gradient_lists import as_list
from mtlkernels.ops.registry import LIBRARY, call, define

_graddrop = define(
    "graddrop", "(Tensor[] grads, int num_tasks, Tensor seed, Tensor step, Tensor leak) -> Tensor"
)
_trimmed_mean = define("trimmed_mean", "(Tensor[] grads, int num_tasks, int trim) -> Tensor")
_track_gram = define(
    "track_gram",
    "(Tensor[] grads, int num_tasks, Tensor scale, Tensor rate, Tensor(a!) state) -> Tensor",
)
_excess = define("excess", "(Tensor[] grads, int num_tasks, float eps, Tensor(a!) state) -> Tensor")


def graddrop(
    grads: Sequence[Tensor], num_tasks: int, seed: Tensor, step: Tensor, leak: Tensor
) -> Tensor:
    """GradDrop's direction (arXiv 2010.06808): of each element the gradients of one drawn sign.

    With S = sum_t g_t and A = sum_t |g_t| in an element, the positive sign is drawn with
    probability (1 + S / A) / 2: d = sum_t f_t g_t, f_t = 1 where g_t has the drawn sign, else
    leak_t. One pass: reads the gradients once and writes d once. The draw of flat place k is word
    k % 4 of Philox4x32-10 with the counter (k // 4, step) and the key seed, the same on every
    device and for any number of threads. A NaN or an infinity reaches d. Not differentiable.

    Args:
        grads: gradient list of T * P tensors.
        num_tasks: T.
        seed, step: int64 scalars on the gradients' device.
        leak: (T) float64 in 0 .. 1, the share of each task's gradient that is never dropped.

    Returns:
        (L) the flat direction, as `combine` lays it out.

    Raises:
        ValueError, RuntimeError: as `gram`; seed, step or leak are not what they have to be.
    """
    grads = as_list(grads)
    _check_device(grads, seed=seed, step=step, leak=leak)
    return call(_graddrop, grads, num_tasks, seed, step, leak)


def trimmed_mean(grads: Sequence[Tensor], num_tasks: int, trim: int) -> Tensor:
    """The mean over the tasks, in each element without its `trim` smallest and largest values.

    An absent gradient counts as zeros. A NaN reaches the direction; an infinity is a value like
    others and may be trimmed. Reads the gradients once and writes the direction once. Not
    differentiable.

    Args:
        grads: gradient list of T * P tensors.
        num_tasks: T.
        trim: at least 0 and below T / 2.

    Returns:
        (L) the flat direction, as `combine` lays it out.

    Raises:
        ValueError, RuntimeError: as `gram`; or trim leaves nothing.
    """
    return call(_trimmed_mean, as_list(grads), num_tasks, trim)


def track_gram(
    grads: Sequence[Tensor], num_tasks: int, scale: Tensor, rate: Tensor, state: Tensor
) -> Tensor:
    """Moves T averages towards T gradients and gives the averages' Gram matrix, in one pass.

    state_t <- state_t + rate (scale_t g_t - state_t), an absent gradient being zero, then
    K_ij = <state_i, state_j>. Reads the gradients once, reads and writes the state once. An element
    whose new value would not be finite stays as it was, and row and column t of K are NaN. Not
    differentiable.

    Args:
        grads: gradient list of T * P tensors.
        num_tasks: T.
        scale: (T) float64 on the gradients' device.
        rate: float64 scalar on the gradients' device.
        state: (T, L) contiguous, rows as `combine` lays them out, padding zero; float64 for float64
            gradients, else float32. Changed in place.

    Returns:
        (T, T) float64.

    Raises:
        ValueError, RuntimeError: as `gram`; scale, rate or state are not what they have to be; or
            an input requires grad while gradients are recorded.
    """
    grads = as_list(grads)
    _check_device(grads, scale=scale, rate=rate, state=state)
    _refuse_recording("track_gram", *grads, scale, rate, state)
    return _written(_track_gram(grads, num_tasks, scale, rate, state), state)


def excess(grads: Sequence[Tensor], num_tasks: int, eps: float, state: Tensor) -> Tensor:
    """Adds squared gradients to a state and gives each task's excess risk, in one pass.

    state_t <- state_t + g_t^2, then e_t = sum g_t^2 / sqrt(state_t + eps) over the elements, those
    with g_t = 0 left out. Reads the gradients once, reads and writes the state once. An element
    whose new value would not be finite stays as it was, and e_t is NaN. Not differentiable.

    Args:
        grads: gradient list of T * P tensors.
        num_tasks: T.
        eps: at least 0, in the unit of the squared gradients.
        state: as `track_gram`, and nowhere negative.

    Returns:
        (T) float64.

    Raises:
        ValueError, RuntimeError: as `track_gram`.
    """
    grads = as_list(grads)
    _check_device(grads, state=state)
    _refuse_recording("excess", *grads, state)
    return _written(_excess(grads, num_tasks, eps, state), state)


def _written(answer: Tensor, state: Tensor) -> Tensor:
    if not torch.compiler.is_compiling():
        torch.autograd.graph.increment_version(state)
    return answer


def _check_device(grads: list[Tensor], **others: Tensor) -> None:
    for name, tensor in others.items():
        if tensor.device != grads[0].device:
            raise RuntimeError(
                f"{name} is on {tensor.device}, the gradients on {grads[0].device}: move {name}"
            )


def _refuse_recording(name: str, *tensors: Tensor) -> None:
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        raise RuntimeError(f"{name} is not differentiable: detach the gradients or use no_grad()")


def _refuse_backward(ctx: Any, *cotangents: Tensor) -> None:
    raise RuntimeError(
        "this method's direction is not differentiable: detach the gradients before the method, "
        "or call it under torch.no_grad()"
    )


for _name in ("graddrop", "trimmed_mean"):
    torch.library.register_autograd(f"mtlkernels::{_name}", _refuse_backward, lib=LIBRARY)


# ---------------------------------------------------------------------------- fake kernels


@torch.library.register_fake("mtlkernels::graddrop", lib=LIBRARY)
def _(grads: list[Tensor], num_tasks: int, seed: Tensor, step: Tensor, leak: Tensor) -> Tensor:
    reference.check_tasks("leak", leak, num_tasks)
    return grads[0].new_empty(reference.list_offsets(grads, num_tasks)[-1])


@torch.library.register_fake("mtlkernels::trimmed_mean", lib=LIBRARY)
def _(grads: list[Tensor], num_tasks: int, trim: int) -> Tensor:
    return grads[0].new_empty(reference.list_offsets(grads, num_tasks)[-1])


@torch.library.register_fake("mtlkernels::track_gram", lib=LIBRARY)
def _(grads: list[Tensor], num_tasks: int, scale: Tensor, rate: Tensor, state: Tensor) -> Tensor:
    length = reference.list_offsets(grads, num_tasks)[-1]
    reference.check_state(grads, num_tasks, length, state)
    return state.new_empty((num_tasks, num_tasks), dtype=torch.float64)


@torch.library.register_fake("mtlkernels::excess", lib=LIBRARY)
def _(grads: list[Tensor], num_tasks: int, eps: float, state: Tensor) -> Tensor:
    length = reference.list_offsets(grads, num_tasks)[-1]
    reference.check_state(grads, num_tasks, length, state)
    return state.new_empty(num_tasks, dtype=torch.float64)
