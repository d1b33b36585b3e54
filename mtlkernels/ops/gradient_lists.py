"""The contract of the ops over gradient lists: Gram matrix, weighted sum, the row methods'."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mtlkernels import reference
from mtlkernels.ops.registry import LIBRARY, call, define

__all__ = [
    "combine",
    "combine_out",
    "cross_gram",
    "excess",
    "flat_offsets",
    "graddrop",
    "gram",
    "track_gram",
    "trimmed_mean",
]

_gram = define("gram", "(Tensor[] grads, int num_tasks) -> Tensor")
_combine = define("combine", "(Tensor[] grads, Tensor weights) -> Tensor")
_combine_out = define(
    "combine_out", "(Tensor[] grads, Tensor weights, Tensor(a!) out, float beta) -> ()"
)
_graddrop = define(
    "graddrop", "(Tensor[] grads, int num_tasks, Tensor seed, Tensor step, Tensor leak) -> Tensor"
)
_trimmed_mean = define("trimmed_mean", "(Tensor[] grads, int num_tasks, int trim) -> Tensor")
_track_gram = define(
    "track_gram",
    "(Tensor[] grads, int num_tasks, Tensor scale, Tensor rate, Tensor(a!) state) -> Tensor",
)
_excess = define("excess", "(Tensor[] grads, int num_tasks, float eps, Tensor(a!) state) -> Tensor")


def gram(grads: Sequence[Tensor], num_tasks: int) -> Tensor:
    """The Gram matrix of T gradients, K_ij = <g_i, g_j>.

    Reads every gradient once and copies none that is contiguous. K is as exact as the gradients:
    products and sums are float64 for every dtype, so |K_ij - <g_i, g_j>| <= 2^-47 |g_i| |g_j| at
    most and about 2^-53 |g_i| |g_j| as a rule (`reference.GRAM_NOISE`). The order of the sums does
    not depend on the number of threads. Differentiable, in reverse mode only.

    Args:
        grads: gradient list of T * P tensors.
        num_tasks: T.

    Returns:
        (T, T) float64 on the gradients' device.

    Raises:
        ValueError: the list is empty.
        RuntimeError: its length is not a multiple of T, or dtypes, devices or shapes do not match.
    """
    return call(_gram, as_list(grads), num_tasks)


def cross_gram(first: Sequence[Tensor], second: Sequence[Tensor], num_tasks: int) -> Tensor:
    """The products of T gradients of one batch with those of another, A_ij = <g_i, h_j>.

    What methods of double sampling take (`SDMGrad`, `MoDo`): with independent batches A is an
    unbiased estimate of the true Gram matrix, which a Gram matrix of one batch is not. Not
    symmetric. The corner of one `gram` of all 2T gradients: every gradient is read once.

    Args:
        first, second: gradient lists of T * P tensors each, over the same parameters.
        num_tasks: T.

    Returns:
        (T, T) float64 on the gradients' device.

    Raises:
        ValueError: a list is empty, or they differ in length.
        RuntimeError: as `gram`.
    """
    if len(first) != len(second):
        raise ValueError(
            f"the lists hold {len(first)} and {len(second)} gradients: give T * P of each batch"
        )
    return gram([*first, *second], 2 * num_tasks)[:num_tasks, num_tasks:].contiguous()


def combine(grads: Sequence[Tensor], weights: Tensor) -> Tensor:
    """The weighted sum of T gradients as one flat vector, d = sum_t w_t g_t.

    Reads every gradient once and writes the direction once. Accumulates in float32 (float64 for
    float64 input) in the order of the tasks, and rounds once. A weight that is not zero and whose
    size lies outside 1e-30 .. 1e30 makes that float64, and an element whose float32 sum is not
    finite is added up in float64: infinite is what does not fit. Differentiable, in reverse mode
    only.

    Args:
        grads: gradient list of T * P tensors.
        weights: (T) float64 or float32 on the gradients' device.

    Returns:
        (L) in the gradients' dtype: parameters in order, each row-major at an offset that is a
        multiple of 16 elements, the padding zero (`flat_offsets` gives the places). A parameter
        whose gradient is absent from every task takes no room.

    Raises:
        ValueError, RuntimeError: as `gram`.
    """
    grads = as_list(grads)
    _check_device(grads, weights=weights)
    return call(_combine, grads, weights)


def combine_out(grads: Sequence[Tensor], weights: Tensor, out: Tensor, beta: float = 0.0) -> None:
    """`combine` into memory that is there: out <- beta * out + sum_t w_t g_t.

    With beta = 0 `out` is not read, so it may hold anything. Of bfloat16 or float16 gradients `out`
    may be float32: the sum, which is one already, is then not rounded to 16 bits. Not
    differentiable.

    Args:
        grads: gradient list of T * P tensors, none of which shares memory with `out`.
        weights: (T) float64 or float32.
        out: (L) contiguous, as `combine` lays it out; of the gradients' dtype, or float32 where
            that is bfloat16 or float16.
        beta: factor of the old contents.

    Raises:
        ValueError, RuntimeError: as `gram`; `out` has another length, dtype or device; or an input
            requires grad while gradients are recorded.
    """
    grads = as_list(grads)
    _check_device(grads, weights=weights)
    if torch.is_grad_enabled() and any(t.requires_grad for t in (*grads, weights, out)):
        raise RuntimeError("combine_out is not differentiable: use combine, or torch.no_grad()")
    _combine_out(grads, weights, out, beta)
    if not torch.compiler.is_compiling():
        torch.autograd.graph.increment_version(out)


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


def flat_offsets(numels: Sequence[int]) -> list[int]:
    """Where each of P parameters starts in a flat direction, and its length last: P + 1 numbers."""
    return reference.flat_offsets(numels)


def _check_device(grads: list[Tensor], **others: Tensor) -> None:
    for name, tensor in others.items():
        if tensor.device != grads[0].device:
            raise RuntimeError(
                f"{name} is on {tensor.device}, the gradients on {grads[0].device}: move {name}"
            )


def as_list(grads: Sequence[Tensor]) -> list[Tensor]:
    """The list; raises ValueError where it is empty."""
    if len(grads) == 0:
        raise ValueError("the gradient list is empty: pass T * P tensors, task by task")
    return list(grads)


def _written(answer: Tensor, state: Tensor) -> Tensor:
    if not torch.compiler.is_compiling():
        torch.autograd.graph.increment_version(state)
    return answer


def _refuse_recording(name: str, *tensors: Tensor) -> None:
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        raise RuntimeError(f"{name} is not differentiable: detach the gradients or use no_grad()")


# ---------------------------------------------------------------------------- fake kernels


@torch.library.register_fake("mtlkernels::gram", lib=LIBRARY)
def _(grads: list[Tensor], num_tasks: int) -> Tensor:
    reference.check_list(grads, num_tasks)
    return grads[0].new_empty((num_tasks, num_tasks), dtype=torch.float64)


@torch.library.register_fake("mtlkernels::combine", lib=LIBRARY)
def _(grads: list[Tensor], weights: Tensor) -> Tensor:
    return grads[0].new_empty(reference.list_offsets(grads, weights.shape[0])[-1])


@torch.library.register_fake("mtlkernels::combine_out", lib=LIBRARY)
def _(grads: list[Tensor], weights: Tensor, out: Tensor, beta: float) -> None:
    length = reference.list_offsets(grads, weights.shape[0])[-1]
    reference.check_out_type(out, grads[0])
    torch._check(out.shape[0] == length, lambda: f"out must have {length} elements")


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


# -------------------------------------------------------------------------------- gradients
# gram and combine are each other's: d<K, S>/dg_i = sum_j (S + S^T)_ij g_j, and the weights'
# gradient of a direction is the last column of the Gram matrix of (g_1, ..., g_T, cotangent).


def _setup_gram(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.num_tasks = inputs[1]
    ctx.save_for_backward(*inputs[0])


def _gram_backward(ctx: Any, cotangent: Tensor) -> tuple[list[Tensor], None]:
    grads, T = list(ctx.saved_tensors), ctx.num_tasks
    mix = cotangent + cotangent.T
    rows = [combine(grads, mix[t]) for t in range(T)]
    pieces = [piece for row in rows for piece in _pieces(row, grads, T)]
    return [
        piece if grad.numel() else torch.zeros_like(grad)
        for piece, grad in zip(pieces, grads, strict=True)
    ], None


def _setup_combine(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[0], inputs[1])


def _combine_backward(ctx: Any, cotangent: Tensor) -> tuple[list[Tensor], Tensor]:
    *grads, weights = ctx.saved_tensors
    T = weights.numel()
    pieces = _pieces(cotangent, grads, T)
    to_grads = [
        (weights[t] * piece.double()).to(piece.dtype) if grad.numel() else torch.zeros_like(grad)
        for t in range(T)
        for piece, grad in zip(pieces, grads[t * len(pieces) :], strict=False)
    ]
    to_weights = gram([*grads, *pieces], T + 1)[:T, T]
    return to_grads, to_weights.to(weights.dtype)


def _pieces(flat: Tensor, grads: list[Tensor], num_tasks: int) -> list[Tensor]:
    """P views of a flat vector in the parameters' shapes."""
    models = reference.check_list(grads, num_tasks)
    offsets = reference.list_offsets(grads, num_tasks)
    return [
        flat[:0] if model is None else flat[at : at + model.numel()].view(model.shape)
        for model, at in zip(models, offsets, strict=False)
    ]


torch.library.register_autograd(
    "mtlkernels::gram", _gram_backward, setup_context=_setup_gram, lib=LIBRARY
)
torch.library.register_autograd(
    "mtlkernels::combine", _combine_backward, setup_context=_setup_combine, lib=LIBRARY
)


def _refuse_backward(ctx: Any, *cotangents: Tensor) -> None:
    raise RuntimeError(
        "this method's direction is not differentiable: detach the gradients before the method, "
        "or call it under torch.no_grad()"
    )


for _name in ("graddrop", "trimmed_mean"):
    torch.library.register_autograd(f"mtlkernels::{_name}", _refuse_backward, lib=LIBRARY)
