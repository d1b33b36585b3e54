"""PCGrad, AvgNorm, GradVac, GradNorm and projected descent on the simplex, in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from mtlkernels.reference.draws import visiting_order
from mtlkernels.reference.noise import NOISE, TOLERANCE
from mtlkernels.reference.status import (
    ILL_CONDITIONED,
    INVALID_LOSS,
    NON_FINITE,
    ZERO_GRADIENT,
    check_gram,
    check_order,
    finish,
    task_status,
    unusable,
)

__all__ = [
    "avgnorm",
    "gradnorm",
    "gradvac",
    "onto_simplex",
    "pcgrad",
    "pcgrad_drawn",
    "simplex_descent",
]


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


def gradvac(
    gram: Tensor, order: Tensor, phi: Tensor, beta: float, corrected: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """GradVac's weights and next targets: all rows of C walk at once (csrc/solvers/gradvac.h)."""
    status = task_status(gram)
    T = len(gram)
    check_order(order, T)
    if phi.shape != (T, T) or phi.dtype != torch.float64:
        raise RuntimeError("phi must be a contiguous float64 matrix (T, T) on gram's device")
    takes_part = status == 0
    finite = ~unusable(status)
    square = torch.where(takes_part, gram.diagonal(), 0.0)
    rows = torch.arange(T, device=gram.device)
    C = torch.eye(T, dtype=gram.dtype, device=gram.device)
    following, moved = phi.clone(), torch.zeros_like(square)
    for visit in range(T - 1):
        j = order[:, visit]
        dots = C @ gram
        length = (C * dots).sum(dim=1)
        size = C.abs() @ square.sqrt()
        paired = finite & takes_part & takes_part[j] & (length > 4 * NOISE * size * size)
        lost = finite & takes_part & takes_part[j] & ~paired & (phi[rows, j] != 0)
        moved += torch.where(lost, 2 * NOISE**0.5 * size, 0.0)
        ratio = torch.where(paired, length / square[j], 1.0).sqrt()
        scale = torch.where(paired, ratio * square[j], 1.0)
        cosine = (dots[rows, j] / scale).clamp(-1, 1)
        target = phi[rows, j].clamp_max(1 - 1e-6)
        below = paired & (cosine < target)
        sine = ((1 - cosine) * (1 + cosine)).sqrt()
        target_sine = ((1 - target) * (1 + target)).sqrt()
        step = ratio * (target * sine / torch.where(below, target_sine, 1.0) - cosine)
        C[rows, j] += torch.where(below, step, 0.0)
        height, least = length.clamp_min(0).sqrt() * sine, (2 * NOISE) ** 0.5 * size
        change = torch.where(height > least, NOISE * size * size / height, least)
        added = (moved + target.abs() * change) / target_sine + NOISE * size
        moved = torch.where(below & (target != 0), added, moved)
        followed = (1 - beta) * phi[rows, j] + beta * cosine
        following[rows, j] = torch.where(below if corrected else paired, followed, phi[rows, j])
    weights, moved = (C * takes_part[:, None]).sum(dim=0), (moved * takes_part).sum()
    reached = (weights @ gram @ weights).clamp_min(0).sqrt()
    doubtful = takes_part & finite & (moved > 0) & ~(moved <= TOLERANCE * reached)
    status = torch.where(doubtful, ILL_CONDITIONED, status)
    return *finish(weights, status), following


def gradnorm(
    gram: Tensor, losses: Tensor, state: Tensor, start: Tensor, alpha: float, rate: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """GradNorm's weights of this step, and the next state and start (csrc/solvers/gradnorm.h)."""
    status = task_status(gram)
    for name, x in (("losses", losses), ("state", state), ("start", start)):
        if x.shape != gram[0].shape or x.dtype != torch.float64:
            raise RuntimeError(
                f"{name} must be a contiguous float64 vector of {len(gram)} numbers, one a task, "
                "on gram's device"
            )
    takes_part = status == 0
    usable = (losses > 0) & losses.isfinite()
    start = torch.where(start.isnan() & usable, losses, start)
    norm = torch.where(takes_part, gram.diagonal(), 0.0).sqrt()
    count = takes_part.sum()
    total = (state * takes_part).sum()
    weights = torch.where(total > 0, count * state / total, 1.0)

    mean = (state * norm).sum() / count
    ratio = torch.where(takes_part, losses / start, 0.0)
    target = (ratio / (ratio.sum() / count)) ** alpha
    scaled = norm / mean
    moved = (state - rate * scaled * (state * scaled - target).sign()).clamp_min(0)
    moved = torch.where(takes_part, moved, state)
    moves = usable.all() & ~unusable(status) & (mean > 0) & (moved.sum() > 0)
    following = torch.where(moves, len(gram) * moved / moved.sum(), state)
    weights, _ = finish(weights, status)
    return weights, status | torch.where(usable, 0, INVALID_LOSS), following, start


def simplex_descent(
    gram: Tensor,
    state: Tensor,
    rounds: int,
    rate: float,
    momentum: float,
    pull: float,
    damping: float,
    relative: bool,
    preference: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Projected descent on the simplex from `state` (csrc/solvers/simplex_descent.h).

    preference: (T), at least 0, what the pull is towards in place of 1/T.
    """
    status = _cross_status(gram)
    if state.shape != gram[0].shape or state.dtype != torch.float64:
        raise RuntimeError(
            f"state must be a contiguous float64 vector of {len(gram)} numbers, one a task, "
            "on gram's device"
        )
    takes_part = status == 0
    n = takes_part.sum()
    share = (state * takes_part).sum()
    even = takes_part.double() / n
    w = torch.where(share > 0, state * takes_part / share, even)
    if preference is None:
        goal = even
    else:
        goal = preference * takes_part
        goal = torch.where(goal.sum() > 0, goal / goal.sum(), even)
    length = (gram.diagonal().clamp_min(0).sqrt() * takes_part).sum() / n
    unit = length if relative else torch.ones_like(length)
    v = torch.zeros_like(w)
    for _ in range(rounds):
        v = momentum * v + gram / unit / unit @ (w + pull * goal) + damping * w
        moved = onto_simplex(torch.where(takes_part, w - rate * v, -torch.inf))
        w = torch.where(unit > 0, moved, w)
    moves = (n > 0) & ~unusable(status)
    following = torch.where(takes_part & moves, share.clamp_min(0) * w, state)
    return *finish((w + pull * goal) / (1 + pull), status), following


def _cross_status(A: Tensor) -> Tensor:
    """task_status for the products of two batches: rows and columns count, signs do not."""
    check_gram(A)
    ok = A.isfinite()
    bad = ~ok.diagonal()
    bad = bad | ((~ok | ~ok.T) & ~bad[None, :]).any(dim=1)
    zero = (A == 0).all(dim=0) & (A == 0).all(dim=1)
    return torch.where(bad, NON_FINITE, torch.where(zero, ZERO_GRADIENT, 0))


def onto_simplex(x: Tensor) -> Tensor:
    """The point of {w >= 0, sum w = 1} nearest to x, (T); entries of -inf take no part."""
    x = x - x.max()
    ordered = x.clamp_min(-1).sort(descending=True).values
    place = torch.arange(1, len(x) + 1, device=x.device)
    shifts = (ordered.cumsum(dim=0) - 1) / place
    held = (ordered > shifts).sum()
    return (x - shifts.gather(0, (held - 1).clamp_min(0).reshape(1))).clamp_min(0)
