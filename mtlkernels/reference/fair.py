"""(K w)_i = (p_i / w_i)^(1/alpha) in plain torch: NashMTL, FairGrad, PIVRG."""

from __future__ import annotations

import torch
from torch import Tensor

from mtlkernels.reference.noise import NOISE, RIDGE, TOLERANCE
from mtlkernels.reference.status import (
    ILL_CONDITIONED,
    NO_CONVERGENCE,
    NO_SOLUTION,
    check_numbers,
    finish,
    task_status,
    unusable,
)

__all__ = ["fairgrad"]

ROUNDS = 300
NOTHING = 4 * NOISE
UNSOLVABLE_RIDGE = 1e-6
FLOOR = 1e-290


def fairgrad(
    gram: Tensor, alpha: float, importance: Tensor | None, max_norm: float
) -> tuple[Tensor, Tensor]:
    """Newton's method on C y = u, alpha log u + log y = log q (see csrc/solvers/fair.h), where

        n_i = ||g_i||,   C the cosines,   y = n w,   log q = log p + (1 - alpha) log n.

    The end of the iteration is seen on the host: on a device this reads K back.
    """
    status = task_status(gram)
    takes_part = (status == 0).cpu()
    weights = torch.zeros(len(gram), dtype=torch.float64)
    p = check_numbers(importance, gram, "importance").cpu()[takes_part]
    if not bool(((p > 0) & p.isfinite()).all()):
        weights.fill_(torch.nan)
    elif not bool(unusable(status)) and bool(takes_part.any()):
        active, flags = _solve(gram.cpu()[takes_part][:, takes_part], alpha, p, max_norm)
        weights[takes_part] = active
        status = status | flags
    return finish(weights.to(gram.device), status)


def _solve(K: Tensor, alpha: float, p: Tensor, max_norm: float) -> tuple[Tensor, int]:
    """Weights and flags for tasks that all have a gradient. Norms enter as logarithms only."""
    n = K.diagonal().sqrt()
    largest = float(n.max())
    C = K / n[:, None] / n
    C.fill_diagonal_(1.0)
    n = n / largest
    log_q = p.log() + (1 - alpha) * n.log()
    y, solved, flags = *_newton(C, log_q, alpha, stop_at_no_direction=True), 0
    if not solved or not _moved_by_noise(C, log_q, alpha, y) <= TOLERANCE:
        flags = NO_SOLUTION if solved is None else ILL_CONDITIONED
        ridge = UNSOLVABLE_RIDGE if solved is None else RIDGE
        y, solved = _newton(C + ridge * torch.eye(len(C)), log_q, alpha, stop_at_no_direction=False)
    flags |= 0 if solved else NO_CONVERGENCE
    length = float((y @ C @ y).clamp_min(0).sqrt()) * largest ** ((1 - alpha) / (1 + alpha))
    factor = largest ** (-2 * alpha / (1 + alpha))
    return y / n * (factor * (max_norm / length if length > max_norm else 1.0)), flags


def _moved_by_noise(C: Tensor, log_q: Tensor, alpha: float, y: Tensor) -> float:
    """How far noise of K moves the direction, relative (csrc/solvers/fair.h)."""
    ratio = float(y.sum() / (y @ C @ y).clamp_min(0).sqrt())
    curvature = ((log_q - y.log()) / alpha).clamp(-650, 600).exp() / (alpha * y)
    L, failed = torch.linalg.cholesky_ex(C + torch.diag(curvature))
    if bool(failed):
        return float("inf")
    roots = torch.cholesky_inverse(L).diagonal().clamp_min(0).sqrt()
    return NOISE * (ratio * float(roots.sum()) + 0.5 * ratio * ratio)


def _newton(
    C: Tensor, log_q: Tensor, alpha: float, stop_at_no_direction: bool
) -> tuple[Tensor, bool | None]:
    """y, and whether it was reached; None where ||sum_i y_i u_i|| shows that there is none."""

    def value(y: Tensor) -> Tensor:
        return ((log_q - y.log()) / alpha).clamp(-650, 600).exp()

    y = (log_q / (1 + alpha)).exp()
    best = (y @ value(y)) / (y @ C @ y).clamp_min(NOTHING * float(y.sum() ** 2))
    y = y * best ** (alpha / (1 + alpha))
    u = value(y)
    for round_ in range(ROUNDS):
        Cy, wanted = C @ y, value(y)
        gap = (Cy - wanted).abs()
        if stop_at_no_direction and y @ Cy <= NOTHING * y.sum() ** 2:
            return y, None
        closed = (gap <= 1e-13 * wanted) | (gap <= 2e-15 * (C.abs() @ y + wanted))
        if bool((closed | ((y <= FLOOR) & (Cy > wanted))).all()):
            return y, True
        if round_ < 3:
            u = torch.where(Cy > 0.5 * u, Cy, u)
        scale = (C.diagonal() + u / (alpha * y)).rsqrt()
        H = (C * scale[:, None] * scale).fill_diagonal_(1.0)
        target = scale * (u * (wanted / u).log() - (Cy - u))
        L, _ = torch.linalg.cholesky_ex(H)
        step = scale * torch.cholesky_solve(target[:, None], L)[:, 0]
        change = C @ step + Cy - u
        u, y = _moved(u, change, 2.0, 0 * u), _moved(y, step, 700.0, 0.1 * u)
    return y, False


def _moved(x: Tensor, change: Tensor, shrink: float, reach: Tensor) -> Tensor:
    """x + change, but positive: exponential where it loses over half, or grows up to `reach`."""
    share = change / x
    power = x * share.clamp(-shrink, 600.0).exp()
    moved = torch.where(share < -0.5, power, torch.maximum(x + change, torch.minimum(power, reach)))
    return torch.where(share.isfinite(), moved.clamp(FLOOR, 1 / FLOOR), x)
