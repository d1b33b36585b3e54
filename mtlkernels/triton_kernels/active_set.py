"""The active-set walk over x >= 0 of the small convex problems, in one program.

A problem is minimised over the span of a support in closed form. From a feasible point the walk
goes towards that minimiser, stops at the first coordinate that would become negative and drops it;
at the minimiser itself it adds the coordinate that violates its optimality condition most. Every
step lowers a convex objective, so no support comes back; the additions are bounded as well.

Matrices are tiles of SIZE x SIZE in registers, zero beyond the tasks there are. A column is found
by a sum over the tile with one column kept, which is what Triton has for an index.
"""

from __future__ import annotations

import triton
import triton.language as tl

# A pivot that rounding has eaten is taken as this share of its diagonal: the solution then runs far
# along the null vector, to the boundary.
PIVOT_FLOOR: tl.constexpr = tl.constexpr(4e-15)
# A condition counts as violated beyond this share of the terms it is the difference of.
VIOLATION: tl.constexpr = tl.constexpr(1e-13)


@triton.jit
def times(A, x):
    """A x."""
    return tl.sum(A * x[None, :], axis=1)


@triton.jit
def length(A, x):
    """sqrt(x^T A x)."""
    return tl.sqrt(tl.maximum(tl.sum(x * times(A, x), axis=0), 0.0))


@triton.jit
def solve(A, square, b, support, joined, SIZE: tl.constexpr):
    """y and z (SIZE) with A_S y = 1 and A_S z = b_S over a support, zeros elsewhere.

    By a Cholesky factor, its rows in the order in which the coordinates joined.
    """
    before = support[None, :] & (joined[None, :] < joined[:, None])
    rank = tl.sum(before.to(tl.int32), axis=1)
    count = tl.sum(support.to(tl.int32), axis=0)
    left = A  # columns of the factor as far as they are done, behind them what is left of A
    room = square
    y = tl.where(support, 1.0, 0.0).to(tl.float64)
    z = tl.where(support, b, 0.0)
    for step in range(count):
        this = support & (rank == step)
        later = support & (rank > step)
        column = tl.sum(tl.where(this[None, :], left, 0.0), axis=1)
        floor = PIVOT_FLOOR * tl.sum(tl.where(this, square, 0.0), axis=0)
        pivot = tl.maximum(tl.sum(tl.where(this, column, 0.0), axis=0), floor)
        root = tl.sqrt(pivot)
        # Rounding over a floored pivot: beyond what is left of a row it would grow without bound.
        limit = tl.sqrt(tl.maximum(room, PIVOT_FLOOR * square))
        limit = tl.where(pivot <= floor, limit, float("inf"))
        below = tl.minimum(tl.maximum(column / root, -limit), limit)
        below = tl.where(later, below, 0.0)
        left -= below[:, None] * below[None, :]
        left = tl.where(this[None, :], tl.where(this, root, below)[:, None], left)
        room -= below * below
        first = tl.sum(tl.where(this, y, 0.0), axis=0) / root
        second = tl.sum(tl.where(this, z, 0.0), axis=0) / root
        y = tl.where(this, first, y - below * first)
        z = tl.where(this, second, z - below * second)
    for done in range(count):
        step = count - 1 - done
        this = support & (rank == step)
        row = tl.sum(tl.where(this[:, None], left, 0.0), axis=0)
        row = tl.where(support & (rank <= step), row, 0.0)
        root = tl.sum(tl.where(this, row, 0.0), axis=0)
        first = tl.sum(tl.where(this, y, 0.0), axis=0) / root
        second = tl.sum(tl.where(this, z, 0.0), axis=0) / root
        y = tl.where(this, first, y - row * first)
        z = tl.where(this, second, z - row * second)
    return y, z


@triton.jit
def minimise(y, z, b, k, cone):
    """The best point over a support's span and 1, or a direction of endless descent and 0.

    cone: of x^T A x / 2 + b^T x; else of b^T x + k sqrt(x^T A x) where the sum of x is 1.
    """
    s = tl.sum(y, axis=0)
    t = tl.sum(z, axis=0)
    inside = tl.where(cone, 1.0, s)  # no division by an empty sum
    q = t / inside * y - z
    curvature = -tl.sum(q * b, axis=0)
    bounded = cone | (k * k > curvature)
    safe = tl.where(bounded & (cone == 0), inside * (k * k - curvature), 1.0)
    point = tl.where(bounded, y / inside, 0.0) + tl.sqrt(1 / safe) * q
    return tl.where(cone, -z, point), bounded


@triton.jit
def conditions(A, b, k, x, cone):
    """What has to be at least zero where x is zero, and the size of the terms that make it up."""
    Ax = times(A, x)
    mu = tl.sqrt(tl.maximum(tl.sum(x * Ax, axis=0), 0.0)) / k
    linear = tl.where(cone, 1.0, mu) * b
    nu = tl.where(cone, 0.0, tl.sum(x * (linear + Ax), axis=0))
    return linear + Ax - nu, tl.abs(linear) + tl.abs(nu) + times(tl.abs(A), x)


@triton.jit
def walk(A, square, b, k, part, x, joined, cone, SIZE: tl.constexpr):
    """The minimiser from a feasible x; when coordinates joined; whether the bound on work held.

    square: A's diagonal; part: the coordinates there are; cone: which problem, see minimise.
    """
    i = tl.arange(0, SIZE)
    bound = 8 * tl.sum(part.to(tl.int32), axis=0) + 16
    now = tl.max(joined, axis=0) + 1
    support = x > 0
    last = -1  # the coordinate that joined last
    rounds = 0
    converged = 0
    running = 1
    while running > 0:
        at_rest = 1
        if tl.max(support.to(tl.int32), axis=0) > 0:
            y, z = solve(A, square, b, support, joined, SIZE)
            target, bounded = minimise(y, z, b, k, cone)
            change = tl.where(bounded, target - x, target)
            falling = support & (target < 0)
            ratio = tl.where(falling, -x / tl.where(falling, change, 1.0), float("inf"))
            step = tl.min(ratio, axis=0)
            blocking = tl.argmin(ratio, axis=0)
            blocked = step < tl.where(bounded, 1.0, float("inf"))
            moved = tl.where(bounded, target, x)
            if blocked:
                moved = tl.where(i == blocking, 0.0, x + step * change)
                at_rest = 0
            x = tl.where(support & (moved > 0), moved, 0.0)
            support = x > 0
            # Nothing moves any more, or along a direction without end: as good as it gets.
            stuck = blocked & (blocking == last) & (step == 0)
            if stuck | ((blocked | bounded) == 0):
                converged = 1
                running = 0
                at_rest = 0
        if at_rest > 0:
            slack, size = conditions(A, b, k, x, cone)
            outside = part & (support == 0) & (size > 0)
            share = tl.where(outside, slack / tl.where(size > 0, size, 1.0), 0.0)
            if tl.min(share, axis=0) < -VIOLATION:
                last = tl.argmin(share, axis=0)
                support = support | (i == last)
                joined = tl.where(i == last, now, joined)
                now += 1
                rounds += 1
                if rounds >= bound:
                    running = 0
            else:
                converged = 1
                running = 0
    return x, joined, converged
