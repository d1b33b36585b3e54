"""Ops over gradient lists: the Gram matrix, the weighted sum, and their gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mtlkernels import reference
from mtlkernels.ops.registry import LIBRARY, call, define

_gram = define("gram", "(Tensor[] grads, int num_tasks) -> Tensor")
_combine = define("combine", "(Tensor[] grads, Tensor weights) -> Tensor")
_combine_out = define(
    "combine_out", "(Tensor[] grads, Tensor weights, Tensor(a!) out, float beta) -> ()"
)


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
    _check_device(grads, weights)
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
    _check_device(grads, weights)
    if torch.is_grad_enabled() and any(t.requires_grad for t in (*grads, weights, out)):
        raise RuntimeError("combine_out is not differentiable: use combine, or torch.no_grad()")
    _combine_out(grads, weights, out, beta)
    if not torch.compiler.is_compiling():
        torch.autograd.graph.increment_version(out)


def flat_offsets(numels: Sequence[int]) -> list[int]:
    """Where each of P parameters starts in a flat direction, and its length last: P + 1 numbers."""
    return reference.flat_offsets(numels)


def _check_device(grads: list[Tensor], weights: Tensor) -> None:
    if weights.device != grads[0].device:
        raise RuntimeError(
            f"weights are on {weights.device}, the gradients on {grads[0].device}: move the weights"
        )


def as_list(grads: Sequence[Tensor]) -> list[Tensor]:
    """The list; raises ValueError where it is empty."""
    if len(grads) == 0:
        raise ValueError("the gradient list is empty: pass T * P tensors, task by task")
    return list(grads)


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
