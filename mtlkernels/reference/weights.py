"""The T x T problems that have a closed form or a fixed walk, in plain torch, and K's status."""

from __future__ import annotations

import torch
from torch import Tensor

from mtlkernels.reference.draws import splitmix64, stream
from mtlkernels.reference.noise import NOISE, RIDGE, TOLERANCE

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


def visiting_order(seed: Tensor, step: Tensor, num_tasks: int) -> Tensor:
    """(T, T-1) int64: row i is a random permutation of the other tasks, drawn from (seed, step)."""
    if any(x.numel() != 1 or x.dtype != torch.int64 for x in (seed, step)):
        raise RuntimeError("seed and step must be int64 scalars")
    T = num_tasks
    index = torch.arange(T, device=seed.device)[:, None]
    place = torch.arange(T - 1, device=seed.device)[None, :]
    order = torch.where(place < index, place, place + 1).contiguous()
    draws = (splitmix64(stream(seed, step) + index * T + place) >> 1) & ((1 << 63) - 1)
    for p in range(T - 2, 0, -1):
        other = draws[:, p : p + 1] % (p + 1)
        kept, moved = order[:, p : p + 1].clone(), order.gather(1, other)
        order[:, p : p + 1] = moved
        order.scatter_(1, other, kept)
    return order


def check_order(order: Tensor, T: int) -> None:
    """Raises unless order is (T, T-1) int64 and, where looking is free, names tasks."""
    if order.shape != (T, T - 1) or order.dtype != torch.int64:
        raise RuntimeError("order must be a contiguous int64 matrix (T, T - 1) on gram's device")
    if order.device.type == "cpu" and not ((order >= 0) & (order < T)).all():
        raise RuntimeError(f"order names a task outside 0 .. {T - 1}")


def pcgrad(gram: Tensor, order: Tensor, mean: bool) -> tuple[Tensor, Tensor]:
    """PCGrad's weights: all rows of C walk their own order at once (see csrc/solvers/pcgrad.h)."""
    status = task_status(gram)
    T = gram.shape[0]
    check_order(order, T)
    takes_part = status == 0
    C = torch.eye(T, dtype=gram.dtype, device=gram.device)
    square = gram.diagonal()
    for visit in range(T - 1):
        j = order[:, visit]
        dot = (C * gram[:, j].T).sum(dim=1)
        step = torch.where((dot < 0) & (square[j] > 0), dot / square[j], 0.0)
        C.scatter_add_(1, j[:, None], -step[:, None])
    weights = (C * takes_part[:, None]).sum(dim=0)
    if mean:
        weights = weights / takes_part.sum()
    return finish(weights, status)


def pcgrad_drawn(gram: Tensor, seed: Tensor, step: Tensor, mean: bool) -> tuple[Tensor, Tensor]:
    """PCGrad's weights in the order of (seed, step); counts the step."""
    answer = pcgrad(gram, visiting_order(seed, step, len(gram)), mean)
    step.add_(1)
    return answer


def avgnorm(gram: Tensor, scale: int, constant: float) -> tuple[Tensor, Tensor]:
    """AvgNorm's weights S / ||g_i||; scale picks S (see csrc/solvers/avgnorm.h)."""
    if not 0 <= scale <= 7:
        raise RuntimeError("scale must be a NormScale")
    status = task_status(gram)
    takes_part = status == 0
    norm = gram.diagonal().clamp_min(0).sqrt()
    count = takes_part.sum()
    absent = torch.full_like(norm, torch.inf)
    ordered = torch.where(takes_part, norm, absent).sort().values
    last = (count - 1).clamp_min(0)
    length = {
        0: lambda: gram.sum().clamp_min(0).sqrt(),
        1: lambda: norm.max(),
        2: lambda: norm.sum() / count,
        3: lambda: (gram.diagonal().sum() / count).sqrt(),
        4: lambda: 0.5 * (ordered[last // 2] + ordered[(last + 1) // 2]),
        5: lambda: ordered[0],
        7: lambda: count / torch.where(takes_part, 1 / norm, 0.0).sum(),
        6: lambda: torch.full_like(norm[0], constant),
    }[scale]()
    if scale == 0:
        known = 0.5 * NOISE * norm.sum() ** 2 <= TOLERANCE * length**2  # noise of the sum's square
        flagged = takes_part & ~unusable(status) & ~known
        status = torch.where(flagged, ILL_CONDITIONED, status)
    return finish(length / norm, status)
