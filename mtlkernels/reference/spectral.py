"""K's singular vectors in plain torch, and the methods that use them."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from mtlkernels.reference.noise import CLEAR, NOISE, TOLERANCE
from mtlkernels.reference.status import (
    ILL_CONDITIONED,
    NO_CONVERGENCE,
    STATIONARY,
    check_numbers,
    finish,
    task_status,
    unusable,
)

__all__ = ["aligned", "equiangular"]

SMALL_PIVOT = 1e-4
POSITIVE_SUM, NO_SUM = 1e-6, 1e-12
SWEEPS = 40
Solve = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, int]]


def equiangular(gram: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """ConFIG's and IMTL-G's weights from y = C^+ 1; the bounds are csrc/solvers/equiangular.h's."""

    def solve(S: Tensor, n: Tensor, unit: Tensor, takes_part: Tensor) -> tuple[Tensor, int]:
        F, doubtful = factor(S, torch.ones_like(n))
        rows, flags = orthogonal_rows(F / unit)
        flags |= ILL_CONDITIONED if doubtful else 0
        square, sums = rows.square().sum(dim=1), rows.sum(dim=1)
        part = sums / square
        y, e, reach = rows.T @ (part / square), rows.T @ part, part @ part
        r = 1 - e if len(rows) < len(n) else torch.zeros_like(e)
        size = rows.abs().sum(dim=1) / square * (_size(y) + _size(r) / square)
        moved = NOISE * size.norm()
        if not bool(2 * moved < reach.sqrt()):
            return torch.zeros_like(n), flags | STATIONARY
        inverse = _Inverse(rows, y, r)
        error = moved / reach.sqrt()
        if length == 0:
            along = n @ e
            factor_ = along / reach if along >= 0 else torch.zeros_like(along)
            error += inverse.moved_square() / reach + inverse.moved_image(n) / along.abs()
        else:
            total, sizes = (y / n).sum(), (y / n).abs().sum()
            positive = bool(total > POSITIVE_SUM * sizes)
            factor_ = 1 / (total if positive else sizes)
            if total.abs() > NO_SUM * sizes:
                change = inverse.moved_sum(1 / n)
                error += change * factor_
                if change >= (total - POSITIVE_SUM * sizes).abs():
                    error += 1
        if not bool(error <= TOLERANCE):
            flags |= ILL_CONDITIONED
        return factor_ * y / n, flags | (STATIONARY if factor_ == 0 else 0)

    return _solved(gram, solve)


def _size(x: Tensor) -> Tensor:
    return x.abs().sum()


class _Inverse:
    """Bounds on what noise of C = F^T F moves of sums over y = C^+ 1 and e = 1 - r."""

    def __init__(self, rows: Tensor, y: Tensor, r: Tensor) -> None:
        self.rows, self.y, self.r = rows, y, r
        self.square = rows.square().sum(dim=1)
        self.full = len(rows) == len(y)

    def __call__(self, power: int, x: Tensor) -> Tensor:
        """C^+ to a power of 0, 1 or 2, times x."""
        return self.rows.T @ (self.rows @ x / self.square ** (power + 1))

    def _outside(self, x: Tensor) -> Tensor:
        return 0 * _size(x) if self.full else _size(x - self(0, x))

    def moved_sum(self, x: Tensor) -> Tensor:
        moved = _size(self(1, x)) * _size(self.y) + self._outside(x) * _size(self(1, self.y))
        return NOISE * (moved + _size(self(2, x)) * _size(self.r))

    def moved_image(self, x: Tensor) -> Tensor:
        return NOISE * (_size(self(1, x)) * _size(self.r) + self._outside(x) * _size(self.y))

    def moved_square(self) -> Tensor:
        return NOISE * (_size(self.y) ** 2 + 2 * _size(self(1, self.y)) * _size(self.r))


def aligned(
    gram: Tensor, preference: Tensor | None, scale: int, mean: bool
) -> tuple[Tensor, Tensor]:
    """Aligned-MTL's weights s sum_k u_k (u_k . p) / sigma_k; bounds as in csrc/solvers/aligned.h"""
    numbers = check_numbers(preference, gram, "preference").cpu()

    def solve(S: Tensor, n: Tensor, unit: Tensor, takes_part: Tensor) -> tuple[Tensor, int]:
        p = numbers[takes_part]
        F, doubtful = factor(S, n)
        rows, flags = orthogonal_rows(F * (n / unit))
        sigma = rows.norm(dim=1)
        u = rows / sigma[:, None]
        q, reach = u @ p, u.abs() @ n
        which = {0: sigma.argmin(), 1: sigma.argsort()[(len(sigma) - 1) // 2], 2: None}[scale]
        length = sigma.square().mean().sqrt() if which is None else sigma[which]
        weight = q.abs() * reach / sigma
        moved = reach * (weight / (sigma[:, None] + sigma)).sum(dim=1)
        stretch = 0.0 if which is None else reach[which] ** 2 / (2 * length**2)
        size = q.norm()
        known = size == 0 or NOISE * (moved.norm() + stretch * size) <= TOLERANCE * size
        flags |= 0 if known and not doubtful else ILL_CONDITIONED
        w = u.T @ (q * (length / sigma))
        return w / (p.sum() if mean and p.sum() > 0 else 1.0), flags

    return _solved(gram, solve)


def _solved(gram: Tensor, solve: Solve) -> tuple[Tensor, Tensor]:
    """Calls solve(S, norms as shares of the largest, sqrt(S_ii), who takes part) for those tasks.

    S is K scaled by powers of two, which is exact, to a diagonal in 1 .. 4.
    """
    status = task_status(gram)
    takes_part = (status == 0).cpu()
    weights = torch.zeros(len(gram), dtype=torch.float64)
    if not bool(unusable(status)) and bool(takes_part.any()):
        K = gram.cpu()[takes_part][:, takes_part]
        n = K.diagonal().sqrt()
        half = (torch.frexp(K.diagonal())[1] - 1) // 2
        S = torch.ldexp(K, -(half[:, None] + half)) if _tame(half) else _scale(K, half)
        weights[takes_part], flags = solve(S, n / n.max(), S.diagonal().sqrt(), takes_part)
        status = status | flags
    return finish(weights.to(gram.device), status)


def _tame(half: Tensor) -> bool:
    """Whether 2^-(2 half), which torch.ldexp multiplies by, is an ordinary number."""
    return int(half.abs().max()) < 500


def _scale(K: Tensor, half: Tensor) -> Tensor:
    numbers, powers = K.tolist(), half.tolist()
    return torch.tensor(
        [
            [math.ldexp(x, -a - b) for x, b in zip(row, powers, strict=True)]
            for row, a in zip(numbers, powers, strict=True)
        ],
        dtype=torch.float64,
    )


def factor(S: Tensor, scale: Tensor) -> tuple[Tensor, bool]:
    """F (rank, n) with F^T F = S, by Cholesky, and whether the rank is in doubt.

    Pivots are the largest of the cosines with scaled columns. Small ones are summed exactly, and
    count where they exceed K's noise (csrc/linalg/noise.h).
    """
    n, square = len(S), S.diagonal()
    rest = square.clone()
    rows: list[Tensor] = []
    order: list[int] = []
    doubtful = False
    while bool(rest.max() > 0):
        pivot = int(((rest / square).sqrt() * scale).argmax())
        left = float(rest[pivot])
        if left < SMALL_PIVOT * square[pivot]:
            left, noise = _outside(S, rows, order, pivot)
            if not left > noise:
                doubtful = doubtful or abs(left) > CLEAR * noise
                rest[pivot] = 0
                continue
        row = S[pivot].clone()
        for earlier in rows:
            row -= earlier[pivot] * earlier
        done = rest == 0
        row = torch.where(done, 0.0, row / math.sqrt(left))
        row[pivot] = math.sqrt(left)
        rest = torch.where(done, 0.0, (rest - row.square()).clamp_min(1e-300))
        rest[pivot] = 0
        order.append(pivot)
        rows.append(row)
    return torch.stack(rows) if rows else S.new_empty(0, n), doubtful


def _outside(S: Tensor, rows: list[Tensor], order: list[int], pivot: int) -> tuple[float, float]:
    """The square of the part of gradient `pivot` outside the span of those chosen, and K's noise in
    it; summed in twice the precision."""
    F = torch.stack([row[[*order, pivot]] for row in rows])
    x = torch.linalg.solve_triangular(F[:, :-1], F[:, -1:], upper=True)[:, 0]
    z = torch.cat([torch.ones_like(x[:1]), -x])
    among = S[[pivot, *order]][:, [pivot, *order]]
    high, low = _exact_products(among, z)
    lines = torch.cat([high, low], 1).tolist()
    sums = torch.tensor([math.fsum(line) for line in lines], dtype=torch.float64)
    size = z.abs() @ among.diagonal().sqrt()
    return float(sums @ z), float(NOISE * size * size)


def _exact_products(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """a b as the sum of two float64 (Dekker 1971)."""
    product = a * b
    (a_high, a_low), (b_high, b_low) = _split(a), _split(b)
    low = ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low
    return product, low


def _split(x: Tensor) -> tuple[Tensor, Tensor]:
    shifted = x * (2.0**27 + 1)
    high = shifted - (shifted - x)
    return high, x - high


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
