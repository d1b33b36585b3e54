"""The contract: schema, fake kernel, gradient and typed function of every op. Imports no backend.

Backends attach themselves to `torch.ops.mtlkernels.*` by device (see backends.py). All ops read
their inputs only and return new tensors, except `combine_out`; all are deterministic.

A *gradient list* is task-major, T * P tensors of one dtype on one device: task t's gradient for
parameter p stands at t * P + p. A tensor of zero elements is an absent gradient, a structural zero
that is never read. The elements of a parameter pair up across tasks in row-major order; contiguous
tensors are read in place, others are copied first.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor

from mtlkernels import reference

MAX_NATIVE_TASKS = 64
FLOAT_DTYPES = reference.FLOAT_DTYPES

SCHEMAS = {
    "gram": "(Tensor[] grads, int num_tasks) -> Tensor",
    "combine": "(Tensor[] grads, Tensor weights) -> Tensor",
    "combine_out": "(Tensor[] grads, Tensor weights, Tensor(a!) out, float beta) -> ()",
    "task_status": "(Tensor gram) -> Tensor",
    "visiting_order": "(Tensor seed, Tensor step, int num_tasks) -> Tensor",
    "pcgrad": "(Tensor gram, Tensor order, bool mean) -> (Tensor, Tensor)",
    "cagrad": "(Tensor gram, float c, int rescale, bool sum) -> (Tensor, Tensor)",
    "avgnorm": "(Tensor gram, int scale, float constant) -> (Tensor, Tensor)",
}

LIBRARY = torch.library.Library("mtlkernels", "FRAGMENT")
for _name, _schema in SCHEMAS.items():
    LIBRARY.define(_name + _schema)

_gram = torch.ops.mtlkernels.gram.default
_combine = torch.ops.mtlkernels.combine.default
_combine_out = torch.ops.mtlkernels.combine_out.default
_task_status = torch.ops.mtlkernels.task_status.default
_visiting_order = torch.ops.mtlkernels.visiting_order.default
_pcgrad = torch.ops.mtlkernels.pcgrad.default
_cagrad = torch.ops.mtlkernels.cagrad.default
_avgnorm = torch.ops.mtlkernels.avgnorm.default


# ------------------------------------------------------------------ over the gradient lists


def gram(grads: Sequence[Tensor], num_tasks: int) -> Tensor:
    """The Gram matrix of T gradients, K_ij = <g_i, g_j>.

    Reads every gradient once and copies none that is contiguous. Products are float32 (float64 for
    float64 input), sums above a few thousand products float64, in an order that does not depend on
    the number of threads. Differentiable.

    Args:
        grads: gradient list of T * P tensors.
        num_tasks: T.

    Returns:
        (T, T) float64 on the gradients' device.

    Raises:
        ValueError: the list is empty.
        RuntimeError: its length is not a multiple of T, or dtypes, devices or shapes do not match.
    """
    return _call(_gram, _as_list(grads), num_tasks)


def combine(grads: Sequence[Tensor], weights: Tensor) -> Tensor:
    """The weighted sum of T gradients as one flat vector, d = sum_t w_t g_t.

    Reads every gradient once and writes the direction once. Accumulates in float32 (float64 for
    float64 input) in the order of the tasks, and rounds once. Differentiable.

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
    return _call(_combine, _as_list(grads), weights)


def combine_out(grads: Sequence[Tensor], weights: Tensor, out: Tensor, beta: float = 0.0) -> None:
    """`combine` into memory that is there: out <- beta * out + sum_t w_t g_t.

    With beta = 0 `out` is not read, so it may hold anything. Not differentiable.

    Args:
        grads: gradient list of T * P tensors, none of which shares memory with `out`.
        weights: (T) float64 or float32.
        out: (L) contiguous, of the gradients' dtype, as `combine` lays it out.
        beta: factor of the old contents.

    Raises:
        ValueError, RuntimeError: as `gram`; `out` has another length, dtype or device; or an input
            requires grad while gradients are recorded.
    """
    grads = _as_list(grads)
    if torch.is_grad_enabled() and any(t.requires_grad for t in (*grads, weights, out)):
        raise RuntimeError("combine_out is not differentiable: use combine, or torch.no_grad()")
    _combine_out(grads, weights, out, beta)
    if not torch.compiler.is_compiling():
        torch.autograd.graph.increment_version(out)


def flat_offsets(numels: Sequence[int]) -> list[int]:
    """Where each of P parameters starts in a flat direction, and its length last: P + 1 numbers."""
    return reference.flat_offsets(numels)


def _call(op: Callable[..., Any], *args: object) -> Any:
    """Calls a functional op, past the autograd kernel where no gradient is recorded.

    That kernel is Python; it costs more than a small model's whole Gram matrix.
    """
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return op(*args)
    with torch._C._AutoDispatchBelowAutograd():
        return op(*args)


def _as_list(grads: Sequence[Tensor]) -> list[Tensor]:
    if len(grads) == 0:
        raise ValueError("the gradient list is empty: pass T * P tensors, task by task")
    return list(grads)


# -------------------------------------------------------------------------- over K: solvers


def task_status(gram: Tensor) -> Tensor:
    """What K says of each task's gradient: (T) int64 flags, see `mtlkernels.Status`."""
    return _solve(_task_status, reference.task_status, gram.shape[0], gram)


def visiting_order(seed: Tensor, step: Tensor, num_tasks: int) -> Tensor:
    """PCGrad's random visiting order of one step.

    Args:
        seed, step: int64 scalars. The draw is a function of them alone: the same on every device
            and every rank.
        num_tasks: T.

    Returns:
        (T, T-1) int64: row i is a permutation of the other tasks.
    """
    return _solve(_visiting_order, reference.visiting_order, num_tasks, seed, step, num_tasks)


def pcgrad(gram: Tensor, order: Tensor, mean: bool = False) -> tuple[Tensor, Tensor]:
    """PCGrad's weights (arXiv 2001.06782), exact, from K alone. Degree 0 in the gradients' scale.

    Args:
        gram: (T, T) float64.
        order: (T, T-1) int64, row i the other tasks as task i visits them.
        mean: divide the sum of the projected gradients by the number of tasks that take part.

    Returns:
        weights (T) float64 and status (T) int64.
    """
    return _solve(_pcgrad, reference.pcgrad, gram.shape[0], gram, order, mean)


class Rescale(IntEnum):
    """What CAGrad's direction is divided by."""

    NONE = 0  # nothing: the paper's algorithm
    SQUARE = 1  # 1 + c^2
    LINEAR = 2  # 1 + c


def cagrad(
    gram: Tensor,
    c: float,
    rescale: int = Rescale.NONE,
    sum: bool = False,
) -> tuple[Tensor, Tensor]:
    """CAGrad's weights (arXiv 2110.14048), exact. Degree 0 in the gradients' scale.

    Args:
        gram: (T, T) float64.
        c: radius of the ball about the mean gradient, as a share of its norm; at least 0.
        rescale: see `Rescale`.
        sum: multiply by the number of tasks that take part.

    Returns:
        weights (T) float64 and status (T) int64.
    """
    return _solve(_cagrad, reference.cagrad, gram.shape[0], gram, c, rescale, sum)


class NormScale(IntEnum):
    """The length S of AvgNorm's direction per unit gradient."""

    SUM = 0  # norm of the sum of the gradients
    MAX = 1  # largest norm
    MEAN = 2  # mean norm
    RMS = 3  # root mean square of the norms
    MEDIAN = 4  # median norm; of an even number the mean of the middle two
    MIN = 5  # smallest norm
    CONSTANT = 6  # a given number


def avgnorm(gram: Tensor, scale: int, constant: float = 1.0) -> tuple[Tensor, Tensor]:
    """Norm scaling (arXiv 2509.23915): w_i = S / ||g_i|| over the tasks with a gradient.

    Degree 0 in the gradients' scale, -1 for a constant S.

    Args:
        gram: (T, T) float64.
        scale: which S, see `NormScale`.
        constant: S itself, where scale says so.

    Returns:
        weights (T) float64 and status (T) int64.
    """
    return _solve(_avgnorm, reference.avgnorm, gram.shape[0], gram, scale, constant)


def _solve(op: Callable[..., Any], plain: Callable[..., Any], num_tasks: int, *args: object) -> Any:
    """Native solvers hold their problem in on-chip memory; above their size torch serves."""
    if num_tasks <= MAX_NATIVE_TASKS:
        return _call(op, *args)
    warnings.warn(
        f"{num_tasks} tasks are more than the {MAX_NATIVE_TASKS} that native solvers take: "
        "the plain torch solver serves, more slowly",
        stacklevel=3,
    )
    return plain(*args)


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
    torch._check(out.shape[0] == length, lambda: f"out must have {length} elements")


@torch.library.register_fake("mtlkernels::task_status", lib=LIBRARY)
def _(gram: Tensor) -> Tensor:
    reference.check_gram(gram)
    return gram.new_empty(gram.shape[0], dtype=torch.int64)


@torch.library.register_fake("mtlkernels::visiting_order", lib=LIBRARY)
def _(seed: Tensor, step: Tensor, num_tasks: int) -> Tensor:
    return seed.new_empty((num_tasks, num_tasks - 1))


def _fake_solver(gram: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    reference.check_gram(gram)
    return gram.new_empty(gram.shape[0]), gram.new_empty(gram.shape[0], dtype=torch.int64)


for _name in ("pcgrad", "cagrad", "avgnorm"):
    torch.library.register_fake(f"mtlkernels::{_name}", _fake_solver, lib=LIBRARY)


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
        (weights[t] * piece).to(piece.dtype) if grad.numel() else torch.zeros_like(grad)
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


def _refuse_backward(ctx: Any, *cotangents: Tensor) -> None:
    raise RuntimeError(
        "a method's weights are not differentiable: detach the Gram matrix before the method, or "
        "call it under torch.no_grad()"
    )


torch.library.register_autograd(
    "mtlkernels::gram", _gram_backward, setup_context=_setup_gram, lib=LIBRARY
)
torch.library.register_autograd(
    "mtlkernels::combine", _combine_backward, setup_context=_setup_combine, lib=LIBRARY
)
for _name in ("pcgrad", "cagrad", "avgnorm"):
    torch.library.register_autograd(f"mtlkernels::{_name}", _refuse_backward, lib=LIBRARY)
