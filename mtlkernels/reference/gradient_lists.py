"""Gram matrix and weighted sum over gradient lists, in plain torch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

ALIGN = 16  # elements; every parameter's place in a flat direction starts at a multiple of it
# |K_ij - <g_i, g_j>| <= GRAM_NOISE |g_i| |g_j| on every backend: see csrc/common/gram_noise.h.
GRAM_NOISE = 2.0**-47
FLOAT_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def check_list(grads: Sequence[Tensor], num_tasks: int) -> list[Tensor | None]:
    """Checks a task-major list of T * P gradients; returns one present gradient a parameter.

    A tensor of zero elements is an absent gradient. Where all are absent the entry is None.
    """
    if num_tasks < 1 or len(grads) == 0 or len(grads) % num_tasks:
        raise RuntimeError(
            f"expected a task-major list of num_tasks * P gradients, got {len(grads)} gradients "
            f"for {num_tasks} tasks"
        )
    if grads[0].dtype not in FLOAT_DTYPES:
        raise RuntimeError("gradients must be float32, float64, bfloat16 or float16")
    params = len(grads) // num_tasks
    models: list[Tensor | None] = [None] * params
    for i, grad in enumerate(grads):
        name = f"the gradient of task {i // params} for parameter {i % params}"
        if grad.dtype != grads[0].dtype:
            raise RuntimeError(
                f"{name} has another dtype than the first of the list: call once for each dtype"
            )
        if grad.device != grads[0].device:
            raise RuntimeError(f"{name} is not on {grads[0].device} as the first of the list is")
        if grad.numel() == 0:
            continue
        model = models[i % params]
        if model is None:
            models[i % params] = grad
        elif grad.shape != model.shape:
            raise RuntimeError(f"{name} has shape {tuple(grad.shape)}, not {tuple(model.shape)}")
    return models


def flat_offsets(numels: Sequence[int]) -> list[int]:
    """Where each of P blocks starts in the flat space, and the flat length last: P + 1 numbers."""
    offsets = [0]
    for n in numels:
        offsets.append(offsets[-1] + (n + ALIGN - 1) // ALIGN * ALIGN)
    return offsets


def list_offsets(grads: Sequence[Tensor], num_tasks: int) -> list[int]:
    """The flat offsets of a list of gradients."""
    return flat_offsets([0 if m is None else m.numel() for m in check_list(grads, num_tasks)])


def gram(grads: Sequence[Tensor], num_tasks: int) -> Tensor:
    """K_ij = <g_i, g_j>, (T, T) float64: float64 products, to GRAM_NOISE |g_i| |g_j|."""
    models = check_list(grads, num_tasks)
    sums = GramSums(num_tasks, grads[0].device)
    for p, model in enumerate(models):
        if model is None:
            continue
        column = grads[p :: len(models)]
        present = [t for t, grad in enumerate(column) if grad.numel()]
        sums.add(torch.stack([column[t].reshape(-1) for t in present]), present)
    return sums.total()


class GramSums:
    """A Gram matrix that is added up parameter by parameter, with compensated sums."""

    def __init__(self, num_tasks: int, device: torch.device) -> None:
        self._sum = torch.zeros((num_tasks, num_tasks), dtype=torch.float64, device=device)
        self._rest = torch.zeros_like(self._sum)

    def add(self, rows: Tensor, tasks: Sequence[int]) -> None:
        """Adds the products of the rows (n, N), which are those of the tasks.

        By sums of 1024 products, not by a matrix product: a BLAS may order its sums by the
        alignment of its operands.
        """
        rows = torch.nn.functional.pad(rows, (0, -rows.shape[1] % 1024))
        for piece in rows.split(1 << 18, dim=1):
            blocks = piece.to(torch.float64).reshape(len(tasks), -1, 1024)
            found = torch.zeros_like(self._sum)
            for i, task in enumerate(tasks):
                column = (blocks[i:] * blocks[i]).sum(dim=2).sum(dim=1)
                found[list(tasks[i:]), task] = column
            # Knuth's two-sum: what the addition rounds away, exactly
            total = self._sum + found
            part = total - self._sum
            self._rest += (self._sum - (total - part)) + (found - part)
            self._sum = total

    def total(self) -> Tensor:
        """K, (T, T). A sum that is infinite stays so: its rest is no number."""
        K = self._sum + torch.where(self._rest.isfinite(), self._rest, 0.0)
        return K.tril() + K.tril(-1).T


def combine(grads: Sequence[Tensor], weights: Tensor) -> Tensor:
    """sum_t w_t g_t as one flat vector, parameters at multiples of ALIGN, padding zero."""
    _check_weights(weights)
    length = list_offsets(grads, weights.numel())[-1]
    out = grads[0].new_zeros(length)
    combine_out(grads, weights, out, 0.0)
    return out


def combine_out(grads: Sequence[Tensor], weights: Tensor, out: Tensor, beta: float) -> None:
    """out <- beta * out + sum_t w_t g_t, accumulated in float64 and rounded once.

    In float32 a weight may be infinite or zero whose product with its gradient is neither.
    """
    _check_weights(weights)
    num_tasks = weights.numel()
    models = check_list(grads, num_tasks)
    offsets = list_offsets(grads, num_tasks)
    check_out_type(out, grads[0])
    if out.shape != (offsets[-1],) or not out.is_contiguous():
        raise RuntimeError(
            f"out must be a contiguous vector of {offsets[-1]} elements, as combine returns it"
        )
    for p, model in enumerate(models):
        if model is None:
            continue
        n = model.numel()
        place = out[offsets[p] : offsets[p] + n]
        total = torch.zeros_like(place, dtype=torch.float64) if beta == 0 else beta * place.double()
        for t in range(num_tasks):
            grad = grads[t * len(models) + p]
            if grad.numel():
                total = total + weights[t] * grad.reshape(-1).double()
        place.copy_(total)
        out[offsets[p] + n : offsets[p + 1]] = 0


def check_out_type(out: Tensor, grad: Tensor) -> None:
    """Raises RuntimeError where `combine_out` does not write that dtype, or on that device."""
    widened = out.dtype == torch.float32 and grad.dtype in (torch.bfloat16, torch.float16)
    if out.device != grad.device or not (widened or out.dtype == grad.dtype):
        raise RuntimeError(
            "out must have the gradients' device and dtype, or float32 for bfloat16 or float16 "
            "gradients"
        )


def _check_weights(weights: Tensor) -> None:
    if weights.dim() != 1 or weights.numel() < 1:
        raise RuntimeError("weights must be a vector with one entry a task")
    if weights.dtype not in (torch.float64, torch.float32):
        raise RuntimeError("weights must be float64 or float32")
