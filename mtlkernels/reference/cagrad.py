"""CAGrad's problem on the simplex, in plain torch."""

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

__all__ = ["cagrad", "cagrad_preferred"]

# What the direction is divided by, from c.
RESCALE: dict[int, Callable[[float], float]] = {
    0: lambda c: 1.0,
    1: lambda c: 1 + c * c,
    2: lambda c: 1 + c,
}


def cagrad(gram: Tensor, c: float, rescale: int, sum: bool) -> tuple[Tensor, Tensor]:
    """CAGrad's weights 1/T + k w / ||g_w||, where w solves the dual problem

        min over the simplex of  b^T w + k sqrt(w^T K w),   b = K 1 / T,   k = c ||g0||,

    or, where zero lies in the hull of the gradients, 1/T + v with G^T (1/T + v) the projection of
    g0 onto the directions that conflict with no task (see csrc/solvers/cagrad.h). The active set
    branches on the host: on a device this reads K back.
    """
    if not (0 <= c < float("inf")):
        raise RuntimeError("c must be finite and at least 0")
    if rescale not in (0, 1, 2):
        raise RuntimeError("rescale must be 0, 1 or 2")
    status = task_status(gram)
    takes_part = (status == 0).cpu()
    weights = torch.zeros(len(gram), dtype=torch.float64)
    if not bool(unusable(status)) and bool(takes_part.any()):
        active, flags = _cagrad_weights(gram.cpu()[takes_part][:, takes_part], c)
        weights[takes_part] = active * ((len(active) if sum else 1) / RESCALE[rescale](c))
        status = status | flags
    return finish(weights.to(gram.device), status)


def cagrad_preferred(
    gram: Tensor, shares: Tensor, c: float, rescale: int, clip: bool
) -> tuple[Tensor, Tensor]:
    """`cagrad` about sum_i p_i g_i for given shares p in place of the mean gradient.

    With clip, the simplex weights of the pull are min(w, p), and its length stays k. Where the
    gradients are Pareto-stationary there is no w to clip.
    """
    status = task_status(gram)
    takes_part = ((status == 0) & (shares >= 0)).cpu()
    weights = torch.zeros(len(gram), dtype=torch.float64)
    if not bool(unusable(status)) and bool(takes_part.any()):
        p = shares.cpu()[takes_part]
        K = gram.cpu()[takes_part][:, takes_part]
        active, flags = _cagrad_weights(K, c, p)
        pull = active - p
        clipped = torch.minimum(pull / pull.sum(), p) if pull.any() else p
        length, bound = (float((x @ K @ x).clamp_min(0).sqrt()) for x in (pull, clipped))
        if clip and not flags & STATIONARY and bound > 0:
            active = p + clipped * (length / bound)
        weights[takes_part] = active / RESCALE[rescale](c)
        status = status | flags
    return finish(weights.to(gram.device), status)


def _cagrad_weights(K: Tensor, c: float, p: Tensor | None = None) -> tuple[Tensor, int]:
    """Weights and flags for tasks that all have a gradient; p: their shares, by default equal."""
    K = K / K.diagonal().max()
    p = torch.full_like(K[0], 1 / len(K)) if p is None else p
    b = K @ p
    k = c * float((p @ b).clamp_min(0).sqrt())
    if k == 0:
        return p, 0
    pull, moved, flags = cagrad_pull(K, b, k)
    if not is_known(K, pull, moved, k, k / c, flags, p):
        pull, _, flags = cagrad_pull(with_ridge(K), b, k)
        flags |= ILL_CONDITIONED
    return p + pull, flags


def cagrad_pull(K: Tensor, b: Tensor, k: float) -> tuple[Tensor, float, int]:
    """What is added to the mean's weights, how far noise moves its direction, relative, and flags;
    the largest squared norm is 1."""
    start = torch.zeros_like(b)
    start[(b + k * K.diagonal().sqrt()).argmin()] = 1.0
    w, converged = active_set(K, start, simplex_minimiser(K, b, k), simplex_slack(K, b, k))
    flags = 0 if converged else NO_CONVERGENCE
    if is_stationary(K, w):
        v, converged = active_set(K, torch.zeros_like(b), cone_minimiser(K, b), cone_slack(K, b))
        flags |= 0 if converged else NO_CONVERGENCE
        if (v @ K @ v).clamp_min(0).sqrt() <= k * (1 + 1e-9):
            return v, 0.0, flags | STATIONARY
        w, converged = active_set(
            K, v / v.sum(), simplex_minimiser(K, b, k), simplex_slack(K, b, k)
        )
        flags |= 0 if converged else NO_CONVERGENCE
    length = (w @ K @ w).sqrt()
    return k * w / length, moved_root(K, w, float(length), k), flags


def moved_root(K: Tensor, w: Tensor, length: float, k: float) -> float:
    """How far noise of K moves g_w / ||g_w|| (csrc/solvers/cagrad.h)."""
    norm = K.diagonal().sqrt()
    over, terms = Spread(K, (w > 0).nonzero().flatten()), float(w @ norm) / length
    sides = float(norm.mean()) / k + terms
    apart = (w[over.support] - over.y / over.root**2).abs()
    bend = float(apart @ over.norm) / length if len(apart) > 1 else 0.0
    moved = (sides * bend + 0.5 * terms**2) * over.root * length
    return NOISE * (sides * over.tangent + moved)


def is_known(
    K: Tensor,
    pull: Tensor,
    moved: float,
    k: float,
    mean_length: float,
    flags: int,
    p: Tensor | None = None,
) -> bool:
    """Whether noise moves g0 + pull by no more than the tolerance, or the status says why not."""
    if flags & STATIONARY:
        return True
    w = pull + (1 / len(K) if p is None else p)
    ratio = float(K.diagonal().sqrt().mean()) / mean_length
    length = float((w @ K @ w).clamp_min(0).sqrt())
    return k * (moved + 0.5 * NOISE * ratio * ratio) <= TOLERANCE * length


def is_stationary(K: Tensor, w: Tensor) -> bool:
    """Whether ||g_w||^2 is rounding."""
    return bool(w @ K @ w <= 4 * NOISE * (w @ K.diagonal()))
