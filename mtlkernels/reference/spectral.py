"""K's singular vectors in plain torch, and the methods that use them."""

from __future__ import annotations

import torch
from torch import Tensor

from mtlkernels.reference.weights import (
    ILL_CONDITIONED,
    NO_CONVERGENCE,
    NOISE,
    STATIONARY,
    check_numbers,
    finish,
    stands_out,
    task_status,
    unusable,
)

RANK_SHARE = 1e-13
SWEEPS = 40


def equiangular(gram: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """ConFIG's and IMTL-G's weights from y = C^+ 1 (see csrc/solvers/equiangular.h)."""

    def solve(C: Tensor, n: Tensor, takes_part: Tensor) -> tuple[Tensor, int]:
        y, e, sure, flags = _equal_projections(C, RANK_SHARE, 1e-14)
        reach = e @ y
        known = stands_out(float(reach.clamp_min(0).sqrt()), float(y.abs().sum()))
        if reach != 0 and not (sure and known):
            y, e, _, flags = _equal_projections(C, NOISE, NOISE)
            reach, flags = e @ y, flags | ILL_CONDITIONED
        w, projections = y / n, n @ e
        if reach <= 0 or (length == 0 and projections < 0):
            return torch.zeros_like(n), flags | STATIONARY
        if length == 0:
            return w * (projections / reach), flags
        total, size = w.sum(), w.abs().sum()
        if 1e-12 * size < total.abs() <= NOISE * size:
            flags |= ILL_CONDITIONED
        return w / (total if total > NOISE * size else size), flags

    return _solved(gram, solve)


def _equal_projections(
    C: Tensor, share: float, vanishing: float
) -> tuple[Tensor, Tensor, bool, int]:
    """y = C^+ 1, C y, whether more than rounding of C can have made them, and flags."""
    rows, flags = orthogonal_rows(factor(C, torch.ones_like(C[0]), share))
    square, sums = rows.square().sum(dim=1), rows.sum(dim=1)
    size = sums.abs() / square.sqrt()
    part = torch.where(size > vanishing, sums / square, 0.0)
    return rows.T @ (part / square), rows.T @ part, bool((size > NOISE).any()), flags


def aligned(
    gram: Tensor, preference: Tensor | None, scale: int, mean: bool
) -> tuple[Tensor, Tensor]:
    """Aligned-MTL's weights s sum_k u_k (u_k . p) / sigma_k (see csrc/solvers/aligned.h)."""
    numbers = check_numbers(preference, gram, "preference").cpu()

    def solve(C: Tensor, n: Tensor, takes_part: Tensor) -> tuple[Tensor, int]:
        p = numbers[takes_part]
        w, length, flags = _align(C, n, p, scale, RANK_SHARE)
        if scale == 0:
            known = len(factor(C, n, RANK_SHARE)) == len(factor(C, n, NOISE))
        else:
            known = stands_out(length, float(w.abs() @ n))
        if not known:
            w, length, flags = _align(C, n, p, scale, NOISE)
            flags |= ILL_CONDITIONED
        return w / (p.sum() if mean and p.sum() > 0 else 1.0), flags

    return _solved(gram, solve)


def _align(C: Tensor, n: Tensor, p: Tensor, scale: int, share: float) -> tuple[Tensor, float, int]:
    """B p, the direction's length and flags."""
    rows, flags = orthogonal_rows(factor(C, n, share) * n)
    sigma = rows.norm(dim=1)
    length = {
        0: lambda: sigma.min(),
        1: lambda: sigma.median(),
        2: lambda: sigma.square().mean().sqrt(),
    }[scale]()
    unit = rows / sigma[:, None]
    parts = unit @ p
    return unit.T @ (parts * (length / sigma)), float(length * parts.norm()), flags


def _solved(gram: Tensor, solve) -> tuple[Tensor, Tensor]:  # type: ignore[no-untyped-def]
    """Calls solve(cosines, norms as shares of the largest, who takes part) for those tasks."""
    status = task_status(gram)
    takes_part = (status == 0).cpu()
    weights = torch.zeros(len(gram), dtype=torch.float64)
    if not bool(unusable(status)) and bool(takes_part.any()):
        K = gram.cpu()[takes_part][:, takes_part]
        n = K.diagonal().sqrt()
        C = K / n[:, None] / n
        C.fill_diagonal_(1.0)
        weights[takes_part], flags = solve(C, n / n.max(), takes_part)
        status = status | flags
    return finish(weights.to(gram.device), status)


def factor(C: Tensor, scale: Tensor, share: float = RANK_SHARE) -> Tensor:
    """F (rank, n) with F^T F = C, by Cholesky; pivots are the largest of F's scaled columns.

    One of a square up to `share` is none.
    """
    rest = torch.ones(len(C), dtype=C.dtype)
    rows: list[Tensor] = []
    chosen: list[int] = []
    while len(rows) < len(C) and rest.max() > share:
        pivot = int(torch.where(rest > share, rest.sqrt() * scale, 0.0).argmax())
        root = rest[pivot].sqrt()
        row = C[pivot].clone()
        for earlier in rows:
            row -= earlier[pivot] * earlier
        row = row / root
        row[chosen] = 0.0
        row[pivot] = root
        chosen.append(pivot)
        rest = (rest - row.square()).clamp_min(0)
        rest[chosen] = 0.0
        rows.append(row)
    return torch.stack(rows)


def orthogonal_rows(F: Tensor) -> tuple[Tensor, int]:
    """Rotates F's rows until they are orthogonal (one-sided Jacobi); they are sigma_k u_k then.

    All pairs of a round of a tournament are rotated at once.
    """
    rank, n = F.shape
    players = rank + rank % 2
    ring = list(range(players))
    F = F.clone()
    for _ in range(SWEEPS):
        orthogonal = True
        for _ in range(players - 1):
            pairs = [(ring[i], ring[-1 - i]) for i in range(players // 2)]
            pairs = [(min(pair), max(pair)) for pair in pairs if max(pair) < rank]
            ring = [ring[0], ring[-1], *ring[1:-1]]
            if not pairs:
                continue
            a, b = torch.tensor(pairs).T
            p, q = F[a], F[b]
            pp, qq, pq = p.square().sum(1), q.square().sum(1), (p * q).sum(1)
            rotated = pq.abs() > 2e-16 * n * (p * q).abs().sum(1)
            orthogonal = orthogonal and not bool(rotated.any())
            ratio = (qq - pp) / (2 * pq)
            tangent = torch.where(ratio < 0, -1, 1) / (ratio.abs() + (1 + ratio**2).sqrt())
            tangent = torch.where(rotated, tangent, 0.0)[:, None]
            cosine = (1 + tangent**2).rsqrt()
            F[a], F[b] = cosine * (p - tangent * q), cosine * (tangent * p + q)
        if orthogonal:
            return F, 0
    return F, NO_CONVERGENCE
