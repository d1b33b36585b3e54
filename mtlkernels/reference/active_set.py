"""The active-set walk over x >= 0 and its problems, in plain torch (csrc/linalg/active_set.h).

A minimiser maps a support and its Cholesky factor to the best point of the support's span, or to a
direction along which the objective is unbounded below. A slack maps x to the value of each
optimality condition and to the size of the terms whose difference it is.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Minimiser = Callable[[Tensor, Tensor], tuple[Tensor, bool]]
Slack = Callable[[Tensor], tuple[Tensor, Tensor]]


def active_set(K: Tensor, x: Tensor, minimise: Minimiser, slack: Slack) -> tuple[Tensor, bool]:
    support = (x > 0).nonzero().flatten()
    added = -1
    for _ in range(8 * len(K) + 16):
        x, support, moved = _descend(K, x.clone(), support, added, minimise)
        if not moved:
            return x, True
        value, size = slack(x)
        share = torch.where((x > 0) | (size == 0), 0.0, value / size)
        if share.min() >= -1e-13:
            return x, True
        added = int(share.argmin())
        support = torch.cat([support, torch.tensor([added])])
    return x, False


def _descend(
    K: Tensor, x: Tensor, support: Tensor, added: int, minimise: Minimiser
) -> tuple[Tensor, Tensor, bool]:
    """Towards the minimiser over the support, dropping what would become negative on the way."""
    while len(support):
        target, bounded = minimise(support, _cholesky(K[support][:, support]))
        change = target - x[support] if bounded else target
        ratio = torch.where((target < 0), -x[support] / change, torch.inf)
        blocking = int(ratio.argmin())
        if not ratio[blocking] < (1.0 if bounded else torch.inf):
            x[support] = target if bounded else x[support]
            return x, support[x[support] > 0], bounded
        step = ratio[blocking]
        x[support] = (x[support] + step * change).clamp_min(0)
        x[support[blocking]] = 0.0
        stuck = bool(support[blocking] == added) and bool(step == 0)
        support = support[x[support] > 0]
        if stuck:
            return x, support, False
    return x, support, True


def _cholesky(A: Tensor) -> Tensor:
    """The lower factor; a pivot lost to rounding is set to 4e-15 of its diagonal.

    The entries below such a pivot are rounding errors too. They are limited to what is left of
    each row's diagonal; otherwise they would grow without bound from pivot to pivot.
    """
    L = A.tril()
    for j in range(len(A)):
        column = L[j:, j] - L[j:, :j] @ L[j, :j]
        floor = 4e-15 * A[j, j]
        root = column[0].clamp_min(floor).sqrt()
        L[j:, j] = column / root
        if root * root <= floor * (1 + 1e-9):
            room = A.diagonal()[j:] - L[j:, :j].square().sum(dim=1)
            limit = torch.maximum(room, 4e-15 * A.diagonal()[j:]).sqrt()
            L[j:, j] = L[j:, j].clamp(-limit, limit)
        L[j, j] = root
    return L


class Spread:
    """How far noise of K moves an answer over a support (csrc/linalg/active_set.h)."""

    def __init__(self, K: Tensor, support: Tensor) -> None:
        A = K[support][:, support]
        L = _cholesky(A)
        inverse = torch.linalg.solve_triangular(L, torch.eye(len(A), dtype=A.dtype), upper=False)
        square = inverse.square().sum(dim=0)
        y = torch.cholesky_solve(torch.ones_like(square)[:, None], L)[:, 0]
        norm = A.diagonal().sqrt()
        self.sum = float(norm @ square.sqrt())
        self.tangent = float(norm @ (square - y * y / y.sum()).clamp_min(0).sqrt())
        self.root = float(y.sum().sqrt())
        self.y, self.norm, self.support = y, norm, support
        if len(A) == 1:  # nothing to change where the sum stays
            self.tangent = 0.0


def simplex_minimiser(K: Tensor, b: Tensor, k: float) -> Minimiser:
    def minimise(support: Tensor, L: Tensor) -> tuple[Tensor, bool]:
        bs = b[support]
        y, z = torch.cholesky_solve(torch.stack([torch.ones_like(bs), bs], 1), L).unbind(1)
        q = z.sum() / y.sum() * y - z
        room = k * k + q @ bs
        if room <= 0:
            return q, False
        return y / y.sum() + (1 / (y.sum() * room)).sqrt() * q, True

    return minimise


def simplex_slack(K: Tensor, b: Tensor, k: float) -> Slack:
    def slack(w: Tensor) -> tuple[Tensor, Tensor]:
        mu = (w @ K @ w).clamp_min(0).sqrt() / k
        condition = mu * b + K @ w
        nu = w @ condition
        return condition - nu, (mu * b).abs() + nu.abs() + K.abs() @ w

    return slack


def square_minimiser(b: Tensor, linear: float, square: float) -> Minimiser:
    def minimise(support: Tensor, L: Tensor) -> tuple[Tensor, bool]:
        bs = b[support]
        if len(bs) == 1:
            return torch.ones_like(bs), True
        y, z = torch.cholesky_solve(torch.stack([torch.ones_like(bs), bs], 1), L).unbind(1)
        p = y / y.sum()
        q = z.sum() * p - z
        return p + linear / (2 * square) * (q - q.sum() * p), True  # q sums to rounding only

    return minimise


def square_slack(K: Tensor, b: Tensor, linear: float, square: float) -> Slack:
    def slack(w: Tensor) -> tuple[Tensor, Tensor]:
        condition = linear * b + 2 * square * (K @ w)
        nu = w @ condition
        return condition - nu, (linear * b).abs() + nu.abs() + 2 * square * (K.abs() @ w)

    return slack


def cone_minimiser(K: Tensor, b: Tensor) -> Minimiser:
    def minimise(support: Tensor, L: Tensor) -> tuple[Tensor, bool]:
        return torch.cholesky_solve(-b[support][:, None], L)[:, 0], True

    return minimise


def cone_slack(K: Tensor, b: Tensor) -> Slack:
    def slack(v: Tensor) -> tuple[Tensor, Tensor]:
        return K @ v + b, b.abs() + K.abs() @ v

    return slack
