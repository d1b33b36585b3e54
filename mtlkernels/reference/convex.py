"""MGDA, IMGrad, DualProj and UPGrad: small convex problems by the active-set walk, in plain torch.

The walk branches on the host: on a device this reads K back.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mtlkernels.reference.active_set import (
    Spread,
    active_set,
    cone_minimiser,
    cone_slack,
    simplex_minimiser,
    simplex_slack,
    square_minimiser,
    square_slack,
)
from mtlkernels.reference.cagrad import (
    RESCALE,
    cagrad_pull,
    is_known,
    is_stationary,
    moved_root,
)
from mtlkernels.reference.noise import NOISE, TOLERANCE
from mtlkernels.reference.status import (
    ILL_CONDITIONED,
    NO_CONVERGENCE,
    STATIONARY,
    finish,
    task_status,
    unusable,
    with_ridge,
)

__all__ = ["dualproj", "imgrad", "mgda", "upgrad"]


def mgda(gram: Tensor) -> tuple[Tensor, Tensor]:
    """MGDA's weights: argmin over the simplex of w^T K w."""

    def solve(K: Tensor, _: Tensor) -> tuple[Tensor, int]:
        K = K / K.diagonal().max()
        w, flags = _nearest_to_zero(K)
        if is_stationary(K, w):
            return w, flags | STATIONARY
        terms = float(w @ K.diagonal().sqrt() / (w @ K @ w).sqrt())
        moved = min((8 * NOISE) ** 0.5 * terms, NOISE * terms * _spread(K, w).tangent)
        return w, flags | (0 if moved <= TOLERANCE else ILL_CONDITIONED)

    return _on_tasks_with_a_gradient(gram, solve)


def imgrad(gram: Tensor, c: float, form: int, rescale: int) -> tuple[Tensor, Tensor]:
    """IMGrad's weights 1/T + (k / ||g_w||) w; see csrc/solvers/imgrad.h for w."""

    def solve(K: Tensor, _: Tensor) -> tuple[Tensor, int]:
        unit = K.diagonal().max().sqrt()
        A = K / unit / unit
        pull, moved, flags = _imgrad_pull(A, c, form, float(unit))
        length = float(A.mean().clamp_min(0).sqrt())
        if c * length > 0 and not is_known(A, pull, moved, c * length, length, flags):
            b = A.sum(dim=1) / len(A)
            pull, moved, flags = _imgrad_pull(with_ridge(A), c, form, float(unit), b)
            flags |= ILL_CONDITIONED
        return (1 / len(K) + pull) / RESCALE[rescale](c), flags

    return _on_tasks_with_a_gradient(gram, solve)


def dualproj(gram: Tensor, preference: Tensor) -> tuple[Tensor, Tensor]:
    """DualProj's weights: the (preferred) mean, projected onto {d : G d >= 0}."""

    def problems(tasks: Tensor) -> list[Tensor]:
        return [_shares(preference, tasks)]

    return _on_tasks_with_a_gradient(gram, lambda K, tasks: _project(K, problems(tasks)))


def upgrad(gram: Tensor, preference: Tensor) -> tuple[Tensor, Tensor]:
    """UPGrad's weights: each gradient projected onto {d : G d >= 0}, then the (preferred) mean."""

    def problems(tasks: Tensor) -> list[Tensor]:
        return list(torch.diag(_shares(preference, tasks)))

    return _on_tasks_with_a_gradient(gram, lambda K, tasks: _project(K, problems(tasks)))


def _on_tasks_with_a_gradient(
    gram: Tensor, solve: Callable[[Tensor, Tensor], tuple[Tensor, int]]
) -> tuple[Tensor, Tensor]:
    """solve(K, tasks) of the problem without zero gradients: weights and a flag for all."""
    status = task_status(gram)
    tasks = (status == 0).cpu().nonzero().flatten()
    weights = torch.zeros(len(gram), dtype=torch.float64)
    if not bool(unusable(status)) and len(tasks):
        weights[tasks], flags = solve(gram.cpu()[tasks][:, tasks], tasks)
        status = status | flags
    return finish(weights.to(gram.device), status)


def _nearest_to_zero(K: Tensor) -> tuple[Tensor, int]:
    start = torch.zeros_like(K[0])
    start[K.diagonal().argmin()] = 1.0
    zero = torch.zeros_like(start)
    w, converged = active_set(
        K, start, square_minimiser(zero, 0.0, 0.5), square_slack(K, zero, 0.0, 0.5)
    )
    return w, 0 if converged else NO_CONVERGENCE


def _spread(K: Tensor, w: Tensor) -> Spread:
    return Spread(K, (w > 0).nonzero().flatten())


def _imgrad_pull(
    K: Tensor, c: float, form: int, unit: float, b: Tensor | None = None
) -> tuple[Tensor, float, int]:
    """The pull, how far noise moves its direction (csrc/solvers/imgrad.h) and flags."""
    b = K.sum(dim=1) / len(K) if b is None else b
    length, norm = float(b.mean().clamp_min(0).sqrt()), K.diagonal().sqrt()
    k, mean = c * length, float(norm.mean())
    if k == 0:
        return torch.zeros_like(b), 0.0, 0
    w, flags = _nearest_to_zero(K)
    if is_stationary(K, w):
        pull, moved, flag = cagrad_pull(K, b, k)
        return pull, moved, flag | STATIONARY
    nearest = float((w @ K @ w).sqrt())
    terms, ratio = float(w @ norm) / nearest, mean / length
    cosine = min(float(b @ w) / (length * nearest), 1.0)
    turned = NOISE * terms * _spread(K, w).tangent
    turned += NOISE * (ratio * terms + 0.5 * ratio**2 + 0.5 * terms**2)
    if form == 0:
        linear, curvature = 1 - cosine, cosine * k * unit
        numbers, balance = (linear, curvature), linear / (2 * curvature)
        w, converged = active_set(K, w, square_minimiser(b, *numbers), square_slack(K, b, *numbers))
        reached = float((w @ K @ w).sqrt())
        moved = NOISE * (balance * mean + float(w @ norm)) * _spread(K, w).tangent
        if int((w > 0).sum()) > 1:
            moved += (turned / (2 * curvature) + balance * turned / cosine) * length
        moved /= reached
    else:
        root = cosine / (1.5 - cosine) * k
        w, converged = active_set(K, w, simplex_minimiser(K, b, root), simplex_slack(K, b, root))
        reached = float((w @ K @ w).sqrt())
        moved = moved_root(K, w, reached, root)
        if int((w > 0).sum()) > 1:
            stretched = max((_spread(K, w).root * reached) ** 2 - 1, 0.0) ** 0.5
            moved += 1.5 / (1.5 - cosine) * turned / cosine * stretched
    return k * w / reached, moved, flags | (0 if converged else NO_CONVERGENCE)


def _shares(preference: Tensor, tasks: Tensor) -> Tensor:
    if preference.numel() == 0:
        return torch.full((len(tasks),), 1 / len(tasks), dtype=torch.float64)
    return preference.cpu()[tasks]


def _project(K: Tensor, problems: list[Tensor]) -> tuple[Tensor, int]:
    """Sum of the weights of the projections of G^T u, u in problems, posed for unit gradients."""
    norm = K.diagonal().sqrt()
    norm = norm / norm.max()
    C = K / K.diagonal().sqrt() / K.diagonal().sqrt()[:, None]
    C.fill_diagonal_(1.0)
    weights, flags, moved = _project_all(C, norm, problems, careful=False)
    v = weights * norm
    tolerance = TOLERANCE * float((v @ C @ v).clamp_min(0).sqrt())
    if moved > tolerance:
        weights, flags, moved = _project_all(C, norm, problems, careful=True)
    if moved > tolerance:
        weights, flags, _ = _project_all(with_ridge(C), norm, problems, careful=False)
        flags |= ILL_CONDITIONED
    return weights, flags


def _project_all(
    C: Tensor, norm: Tensor, problems: list[Tensor], careful: bool
) -> tuple[Tensor, int, float]:
    """Weights, flags and how far noise moves their sum (csrc/solvers/cone_projection.h)."""
    weights, flags, moved = torch.zeros_like(norm), 0, 0.0
    for u in problems:
        unit = float((norm * u).max())
        weights = weights + u
        if unit == 0:
            continue
        b = C @ (norm * u / unit)
        x, converged = active_set(C, torch.zeros_like(b), cone_minimiser(C, b), cone_slack(C, b))
        weights = weights + x * (unit / norm)
        flags |= 0 if converged else NO_CONVERGENCE
        terms = float(x.sum() + (norm * u).sum() / unit)
        most = (8 * NOISE) ** 0.5 * terms
        if careful and bool((x > 0).any()):
            most = min(most, NOISE * terms * _spread(C, x).sum)
        moved += unit * most if bool((x > 0).any()) or not careful else 0.0
    return weights, flags, moved
