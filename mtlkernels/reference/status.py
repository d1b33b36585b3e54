"""What every solver in plain torch asks of K first: the tasks' status, and checks of arguments."""

from __future__ import annotations

import torch
from torch import Tensor

from mtlkernels.reference.noise import RIDGE

__all__ = [
    "ILL_CONDITIONED",
    "INVALID_GRAM",
    "INVALID_LOSS",
    "NON_FINITE",
    "NO_CONVERGENCE",
    "NO_SOLUTION",
    "STATIONARY",
    "ZERO_GRADIENT",
    "check_gram",
    "task_status",
]

# Flags of a task's status; report.Status names them for people.
NON_FINITE, ZERO_GRADIENT, STATIONARY, NO_CONVERGENCE, NO_SOLUTION = 1, 2, 4, 8, 16
INVALID_LOSS, ILL_CONDITIONED, INVALID_GRAM = 32, 64, 128

ASYMMETRY = 1e-6  # a share by which K_ij and K_ji may differ: a K given by hand may be rounded


def check_gram(gram: Tensor) -> None:
    """Raises unless gram is a square float64 matrix."""
    if gram.dim() != 2 or gram.shape[0] != gram.shape[1] or gram.shape[0] < 1:
        raise RuntimeError("gram must be a square matrix")
    if gram.dtype != torch.float64:
        raise RuntimeError("gram must be float64, as ops.gram returns it")


def task_status(gram: Tensor) -> Tensor:
    """(T) int64: NON_FINITE, INVALID_GRAM or ZERO_GRADIENT where K says so of a task, else 0.

    On the CPU, where looking is free, INVALID_GRAM is an error.
    """
    check_gram(gram)
    square = gram.diagonal()
    known = square.isfinite()
    bad = ~known | (~gram.isfinite() & known[None, :]).any(dim=1)
    length, size = square.sqrt(), gram.abs()
    limit = ASYMMETRY * (length[:, None] * length + size + size.T)
    uneven = (gram - gram.T).abs() > limit  # False where it is NaN
    negative = known & (square < 0)
    if gram.device.type == "cpu" and not torch.compiler.is_compiling():
        _refuse(gram, negative, uneven)
    status = torch.where(square == 0, ZERO_GRADIENT, 0)
    status = torch.where(negative | uneven.any(dim=1), INVALID_GRAM, status)
    return torch.where(bad, NON_FINITE, status)


def _refuse(gram: Tensor, negative: Tensor, uneven: Tensor) -> None:
    """Raises where finite numbers cannot be inner products of gradients."""
    for (i,) in negative.nonzero().tolist():
        raise RuntimeError(
            f"gram[{i}, {i}] = {float(gram[i, i]):g} is negative, which no squared norm is: give "
            "the gradients' inner products, as ops.gram returns them"
        )
    for i, j in uneven.nonzero().tolist():
        raise RuntimeError(
            f"gram is not symmetric, gram[{i}, {j}] = {float(gram[i, j]):g} but gram[{j}, {i}] = "
            f"{float(gram[j, i]):g}: give inner products of one batch, as ops.gram returns them"
        )


def unusable(status: Tensor) -> Tensor:
    """Whether K is none that weights could come from; a scalar on its device."""
    return ((status & (NON_FINITE | INVALID_GRAM)) > 0).any()


def with_ridge(K: Tensor) -> Tensor:
    """K with its diagonal times 1 + RIDGE."""
    return K + RIDGE * torch.diag(K.diagonal())


def check_numbers(numbers: Tensor | None, gram: Tensor, name: str) -> Tensor:
    """One float64 number a task; ones where none were given."""
    if numbers is None:
        return torch.ones_like(gram[0])
    if numbers.shape != gram.shape[:1] or numbers.dtype != torch.float64:
        raise RuntimeError(f"{name} must be a contiguous float64 vector (T) on gram's device")
    return numbers


def finish(weights: Tensor, status: Tensor) -> tuple[Tensor, Tensor]:
    """No weight for a task without gradient; all NaN where K is unusable."""
    weights = torch.where((status & ZERO_GRADIENT) > 0, 0.0, weights)
    return torch.where(unusable(status), torch.nan, weights), status


def check_order(order: Tensor, T: int) -> None:
    """Raises unless order is (T, T-1) int64 and, where looking is free, names tasks."""
    if order.shape != (T, T - 1) or order.dtype != torch.int64:
        raise RuntimeError("order must be a contiguous int64 matrix (T, T - 1) on gram's device")
    if order.device.type == "cpu" and not ((order >= 0) & (order < T)).all():
        raise RuntimeError(f"order names a task outside 0 .. {T - 1}")
