"""Answers of Gram methods for given gradients in 60 digits: what rounding can be held against.

Gradients are taken as the integers that they are, so K is exact. Closed forms are evaluated as
written. Of a convex problem the support is guessed from an answer of the library and then tried in
turn: the one whose point meets the optimality conditions is the answer.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import Any

import mpmath
import numpy as np
import torch
from mpmath import mp, mpf
from torch import Tensor

Row = list[Any]
Exact = Callable[[Any, Row | None], Row]
DIGITS = 60
TINY = mpf(10) ** -45  # a share below this is zero
BITS = {torch.float64: 53, torch.float32: 24, torch.bfloat16: 8, torch.float16: 11}


def integers(rows: Tensor) -> tuple[Any, Any, int]:
    """rows, and half the distance of each number to the next of its dtype, in units 2^unit."""
    bits = BITS[rows.dtype]
    fraction, power = np.frexp(rows.double().numpy())
    unit = int(power.min()) - bits - 1
    whole = np.ldexp(fraction, 53).astype(np.int64).astype(object)
    shift = (power - 53 - unit).astype(object)
    numbers = np.vectorize(lambda x, s: x << s if s >= 0 else x >> -s, otypes=[object])(
        whole, shift
    )
    half = np.vectorize(lambda e: 1 << int(e), otypes=[object])(power - bits - 1 - unit)
    return numbers, half, unit


def products(a: Any, b: Any, unit: int) -> Any:
    """a b^T as an mpmath matrix, of integers in units 2^unit."""
    found = a.dot(b.T)
    scale = mpf(2) ** (2 * unit)
    return mp.matrix([[mpf(int(x)) * scale for x in row] for row in found])


def exact_gram(rows: Tensor, combination: Sequence[Sequence[float]] | None = None) -> Any:
    """K of the rows; with a combination, of the exact sums sum_j combination[i][j] rows[j]."""
    numbers, _, unit = integers(rows)
    if combination is None:
        return products(numbers, numbers, unit)
    factors = [[Fraction(c) for c in line] for line in combination]
    power = max(c.denominator.bit_length() - 1 for line in factors for c in line)
    whole = np.array([[int(c * 2**power) for c in line] for line in factors], dtype=object)
    combined = whole.dot(numbers)
    return products(combined, combined, unit - power)


def rounded_pair(rows: Tensor, generator: torch.Generator) -> tuple[Any, Any, Any]:
    """K, K of rows moved by half a distance of their dtype to either side, and the products."""
    numbers, half, unit = integers(rows)
    signs = (torch.randint(0, 2, rows.shape, generator=generator) * 2 - 1).numpy().astype(object)
    moved = numbers + signs * half
    return (
        products(numbers, numbers, unit),
        products(moved, moved, unit),
        products(moved, numbers, unit),
    )


# ------------------------------------------------------------------------------ measures


def form(a: Row, K: Any, b: Row) -> Any:
    n = range(len(a))
    return mp.fsum(a[i] * K[i, j] * b[j] for i in n for j in range(len(b)))


def norms(K: Any) -> Row:
    return [mp.sqrt(K[i, i]) for i in range(K.rows)]


def length(w: Row, K: Any) -> Any:
    return mp.sqrt(abs(form(w, K, w)))


def error(w: Row, exact: Row, K: Any) -> float:
    """Of d = G^T w, relative to its length, or to the sum of the lengths of its terms where those
    cancel to less than 1e-10 of that: there is no direction to speak of then."""
    n = norms(K)
    terms = mp.fsum(abs(x) * y for x, y in zip(exact, n, strict=True))
    change = [a - b for a, b in zip(w, exact, strict=True)]
    if not all(mp.isfinite(x) for x in w):
        return math.inf
    if terms == 0:
        return 0.0 if not any(w) else math.inf
    size = length(exact, K)
    return float(length(change, K) / (size if size >= mpf("1e-10") * terms else terms))


def moves(w: Row, K: Any, moved: Row, K_moved: Any, cross: Any) -> float:
    """How far the direction of the moved gradients is from that of the gradients, relative."""
    square = form(moved, K_moved, moved) - 2 * form(moved, cross, w) + form(w, K, w)
    size = length(w, K)
    return float(mp.sqrt(abs(square)) / size) if size > 0 else (0.0 if square == 0 else math.inf)


# ------------------------------------------------------------------------------ closed forms


def _spectrum(K: Any) -> list[tuple[Any, Row]]:
    """The eigenvalues of K that are not zero, and their vectors."""
    values, vectors = mp.eigsy(K)
    largest = max(values)
    n = range(K.rows)
    return [(values[k], [vectors[i, k] for i in n]) for k in n if values[k] > TINY * largest]


def _cosines(K: Any) -> Any:
    n = norms(K)
    size = range(K.rows)
    return mp.matrix([[K[i, j] / n[i] / n[j] for j in size] for i in size])


def aligned(scale: str) -> Exact:
    def solve(K: Any, guess: Row | None = None) -> Row:
        """Norms that differ much cost digits of small eigenvalues; 60 are enough here."""
        pairs = sorted(_spectrum(K))
        sigma = [mp.sqrt(value) for value, _ in pairs]
        s = {
            "min": sigma[0],
            "median": sigma[(len(sigma) - 1) // 2],
            "rmse": mp.sqrt(mp.fsum(x * x for x in sigma) / len(sigma)),
        }[scale]
        w = [mpf(0)] * K.rows
        for x, (_, u) in zip(sigma, pairs, strict=True):
            part = s / x * mp.fsum(u)
            w = [a + part * b for a, b in zip(w, u, strict=True)]
        return w

    return solve


def equiangular(unit_sum: bool) -> Exact:
    def solve(K: Any, guess: Row | None = None) -> Row:
        n, size = norms(K), range(K.rows)
        y, e, reach = [mpf(0)] * K.rows, [mpf(0)] * K.rows, mpf(0)
        for value, u in _spectrum(_cosines(K)):
            part = mp.fsum(u)
            if abs(part) < TINY:
                continue
            reach += part * part / value
            y = [a + part / value * b for a, b in zip(y, u, strict=True)]
            e = [a + part * b for a, b in zip(e, u, strict=True)]
        along = mp.fsum(n[i] * e[i] for i in size)
        if reach == 0 or (not unit_sum and along < 0):
            return [mpf(0)] * K.rows
        w = [y[i] / n[i] for i in size]
        total, sizes = mp.fsum(w), mp.fsum(abs(x) for x in w)
        if unit_sum:
            return [x / (total if total > POSITIVE_SUM * sizes else sizes) for x in w]
        return [x * along / reach for x in w]

    return solve


POSITIVE_SUM = mpf("1e-6")  # as IMTLG documents it


def avgnorm(K: Any, guess: Row | None = None) -> Row:
    ones = [mpf(1)] * K.rows
    return [length(ones, K) / n for n in norms(K)]


def pcgrad(order: Tensor) -> Exact:
    def solve(K: Any, guess: Row | None = None) -> Row:
        w = [mpf(0)] * K.rows
        for i, visits in enumerate(order.tolist()):
            row = [mpf(int(k == i)) for k in range(K.rows)]
            for j in visits:
                dot = mp.fsum(row[k] * K[k, j] for k in range(K.rows))
                if dot < 0:
                    row[j] -= dot / K[j, j]
            w = [a + b for a, b in zip(w, row, strict=True)]
        return w

    return solve


# ------------------------------------------------------------------------------ convex problems


def _supports(n: int, guess: Row | None) -> Iterator[tuple[int, ...]]:
    if guess is not None:
        largest = max(abs(x) for x in guess)
        yield tuple(i for i in range(n) if guess[i] > 1e-9 * largest)
    for count in range(1, n + 1):
        yield from itertools.combinations(range(n), count)


def _solve(K: Any, support: Sequence[int], *sides: Row) -> list[Row] | None:
    """K_S^-1 of each side; None where the support is dependent."""
    count, n = len(support), norms(K)
    C = mp.matrix([[K[i, j] / n[i] / n[j] for j in support] for i in support])
    try:
        L = mp.cholesky(C)
    except ValueError:
        return None
    if min(L[r, r] for r in range(count)) ** 2 < TINY:
        return None
    found = []
    for side in sides:
        x = mp.lu_solve(C, mp.matrix([side[i] / n[i] for i in support]))
        found.append([x[r] / n[i] for r, i in enumerate(support)])
    return found


def _spread(x: Row, support: Sequence[int], n: int) -> Row:
    full = [mpf(0)] * n
    for value, i in zip(x, support, strict=True):
        full[i] = value
    return full


def _times(K: Any, w: Row) -> Row:
    return [mp.fsum(K[i, j] * w[j] for j in range(K.rows)) for i in range(K.rows)]


def _meets(slack: Row, size: Row) -> bool:
    return all(s >= -TINY * z for s, z in zip(slack, size, strict=True))


def mgda(K: Any, guess: Row | None = None) -> Row:
    n, size = K.rows, norms(K)
    for support in _supports(n, guess):
        found = _solve(K, support, [mpf(1)] * n)
        if found is None:
            continue
        (y,) = found
        total = mp.fsum(y)
        if total <= 0 or min(y) < 0:
            continue
        w = _spread([x / total for x in y], support, n)
        Kw = _times(K, w)
        terms = mp.fsum(a * b for a, b in zip(w, size, strict=True))
        if _meets([x - 1 / total for x in Kw], [terms * s for s in size]):
            return w
    raise ArithmeticError("zero lies in the hull")


def cone(K: Any, u: Row, guess: Row | None = None) -> Row:
    """v >= 0 with G^T (u + v) the projection of G^T u onto the directions that conflict with
    no task."""
    n, size, b = K.rows, norms(K), _times(K, u)
    terms = mp.fsum(abs(a) * s for a, s in zip(u, size, strict=True))
    if min(b) >= 0:
        return [mpf(0)] * n
    for support in _supports(n, guess):
        found = _solve(K, support, [-x for x in b])
        if found is None or min(found[0]) < 0:
            continue
        v = _spread(found[0], support, n)
        if _meets([p + q for p, q in zip(_times(K, v), b, strict=True)], [terms * s for s in size]):
            return v
    raise ArithmeticError("no support meets the conditions")


def dualproj(K: Any, guess: Row | None = None) -> Row:
    u = [mpf(1) / K.rows] * K.rows
    v = cone(K, u, [g - a for g, a in zip(guess, u, strict=True)] if guess else None)
    return [a + b for a, b in zip(u, v, strict=True)]


def upgrad(K: Any, guess: Row | None = None) -> Row:
    w = [mpf(1) / K.rows] * K.rows
    for i in range(K.rows):
        v = cone(K, [mpf(int(k == i)) / K.rows for k in range(K.rows)])
        w = [a + b for a, b in zip(w, v, strict=True)]
    return w


def _root(K: Any, b: Row, k: Any, guess: Row | None) -> Row:
    """argmin over the simplex of b^T w + k sqrt(w^T K w), scaled to k / ||g_w||."""
    n = K.rows
    size, mean = norms(K), max(norms(K))
    for support in _supports(n, guess):
        found = _solve(K, support, [mpf(1)] * n, b)
        if found is None:
            continue
        y, z = found
        s, t = mp.fsum(y), mp.fsum(z)
        q = [t / s * p - r for p, r in zip(y, z, strict=True)]
        room = k * k + mp.fsum(q[r] * b[i] for r, i in enumerate(support))
        if s <= 0 or room <= 0:
            continue
        mu = mp.sqrt(1 / (s * room))
        w = _spread([p / s + mu * r for p, r in zip(y, q, strict=True)], support, n)
        if min(w) < 0:
            continue
        condition = [mu * p + r for p, r in zip(b, _times(K, w), strict=True)]
        nu = mp.fsum(p * r for p, r in zip(w, condition, strict=True))
        if _meets([x - nu for x in condition], [(1 + mu) * mean * s for s in size]):
            return [x / mu for x in w]
    raise ArithmeticError("zero lies in the hull")


def cagrad(c: float) -> Exact:
    def solve(K: Any, guess: Row | None = None) -> Row:
        n = K.rows
        b = [x / n for x in _times(K, [mpf(1)] * n)]
        k = mpf(c) * mp.sqrt(abs(mp.fsum(b) / n))
        start = [g - mpf(1) / n for g in guess] if guess else None
        try:
            pull = _root(K, b, k, start)
        except ArithmeticError:
            pull = cone(K, [mpf(1) / n] * n, start)
        return [mpf(1) / n + x for x in pull]

    return solve


def imgrad(c: float) -> Exact:
    def solve(K: Any, guess: Row | None = None) -> Row:
        n = K.rows
        b = [x / n for x in _times(K, [mpf(1)] * n)]
        mean = mp.sqrt(abs(mp.fsum(b) / n))
        w = mgda(K)
        cosine = mp.fsum(p * q for p, q in zip(b, w, strict=True)) / (mean * length(w, K))
        k = mpf(c) * mean
        share = cosine / (mpf(1.5) - cosine)
        pull = _root(K, b, share * k, [g - mpf(1) / n for g in guess] if guess else None)
        return [mpf(1) / n + x / share for x in pull]

    return solve


def fair(alpha: float) -> Exact:
    """(K w)_i = w_i^(-1/alpha), by Newton's method in log w from the guess."""

    def solve(K: Any, guess: Row | None = None) -> Row:
        if guess is None or min(guess) <= 0:
            raise ArithmeticError("no start")
        n, a = K.rows, 1 / mpf(alpha)
        w = list(guess)
        for _ in range(60):
            Kw = _times(K, w)
            if min(Kw) <= 0:
                raise ArithmeticError("the start is too far")
            gap = [mp.log(Kw[i]) + a * mp.log(w[i]) for i in range(n)]
            if max(abs(g) for g in gap) < mpf(10) ** -40:
                return w
            J = mp.matrix(n, n)
            for i in range(n):
                for j in range(n):
                    J[i, j] = K[i, j] * w[j] / Kw[i] + (a if i == j else 0)
            step = mp.lu_solve(J, mp.matrix([-g for g in gap]))
            shrink = min(1, 1 / max(abs(x) for x in step))
            w = [w[i] * mp.exp(shrink * step[i]) for i in range(n)]
        raise ArithmeticError("no solution was reached")

    return solve


mpmath.mp.dps = DIGITS
