"""CAGrad's weights (arXiv 2110.14048) from K, all float64, in one program.

With b = K 1 / T and k = c ||g0||, the weights are 1 / T + k w / ||g_w|| for the w that minimises
b^T w + k ||g_w|| over the simplex. Where zero lies in the hull of the gradients they are 1 / T + v,
with v >= 0 minimising v^T K v / 2 + b^T v: the projection of g0 onto the directions that conflict
with no task. Both by the active-set walk of active_set.py, from at most three starts, and once more
with a ridge where K's rounding may move the answer.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mtlkernels.triton_kernels.active_set import length, solve, times, walk
from mtlkernels.triton_kernels.pcgrad import INVALID_GRAM, NON_FINITE, ZERO_GRADIENT, screen

STATIONARY: tl.constexpr = tl.constexpr(4)
NO_CONVERGENCE: tl.constexpr = tl.constexpr(8)
ILL_CONDITIONED: tl.constexpr = tl.constexpr(64)
# As in mtlkernels/reference/noise.py.
NOISE: tl.constexpr = tl.constexpr(8 * 2.0**-53)
TOLERANCE: tl.constexpr = tl.constexpr(1e-4)
RIDGE: tl.constexpr = tl.constexpr(2048 * 2.0**-53)


@triton.jit
def moved_root(A, square, x, joined, size, k, mean, SIZE: tl.constexpr):
    """How far noise of K moves g_x / ||g_x||, ||g_x|| = size (csrc/solvers/cagrad.h)."""
    i = tl.arange(0, SIZE)
    support = x > 0
    y, z = solve(A, square, x, support, joined, SIZE)
    s = tl.sum(y, axis=0)
    one_only = tl.sum(support.to(tl.int32), axis=0) == 1  # nothing to change where the sum stays
    near = y / s
    apart = tl.where(support, tl.abs(x - near), 0.0)
    bend = tl.where(one_only, 0.0, tl.sum(apart * tl.sqrt(square), axis=0) / size)
    sines = k * 0.0
    for t in range(SIZE):
        this = support & (i == t)
        if tl.max(this.to(tl.int32), axis=0) > 0:
            one = tl.where(this, 1.0, 0.0).to(tl.float64)
            y, z = solve(A, square, one, support, joined, SIZE)
            left = tl.sum(tl.where(this, (z - y * near) * square, 0.0), axis=0)
            sines += tl.where(one_only, 0.0, tl.sqrt(tl.maximum(left, 0.0)))
    terms = tl.sum(x * tl.sqrt(square), axis=0) / size
    sides = mean / k + terms
    return NOISE * (sides * sines + (sides * bend + 0.5 * terms * terms) * tl.sqrt(s) * size)


@triton.jit
def pull(A, square, b, k, mean, part, SIZE: tl.constexpr):
    """What is added to the mean's weights (SIZE), how far noise moves its direction, and flags.

    square: A's diagonal, 1 at most; mean: of its roots.
    """
    i = tl.arange(0, SIZE)
    vertex = tl.where(part, b + k * tl.sqrt(square), float("inf"))
    x = tl.where(i == tl.argmin(vertex, axis=0), 1.0, 0.0).to(tl.float64)
    joined = tl.zeros([SIZE], tl.int32)
    answer = tl.zeros([SIZE], tl.float64)
    moved = k * 0.0
    flags = 0
    start = (
        0  # from the best task, from no step at all, from the point that shows no stationary one
    )
    while start < 3:
        x, joined, converged = walk(A, square, b, k, part, x, joined, start == 1, SIZE)
        flags = flags | tl.where(converged > 0, 0, NO_CONVERGENCE)
        size = length(A, x)
        if start == 1:
            if size <= k * (1 + 1e-9):
                flags = flags | STATIONARY
                answer = x
                start = 3
            else:
                x = x / tl.sum(x, axis=0)
                start = 2
        else:
            if (start == 0) & (size * size <= 4 * NOISE * tl.sum(x * square, axis=0)):
                x = tl.zeros([SIZE], tl.float64)
                start = 1
            else:
                answer = k / size * x
                moved = moved_root(A, square, x, joined, size, k, mean, SIZE)
                start = 3
    return answer, moved, flags


@triton.jit(do_not_specialize=["c_high", "c_low", "tasks"])
def cagrad_kernel(
    K,
    weights,
    status,
    c_high,
    c_low,
    tasks,
    RESCALE: tl.constexpr,
    SUM: tl.constexpr,
    SIZE: tl.constexpr,
):
    """K: (T, T) float64, dense; SIZE >= T; c in two halves as in combine.py."""
    i = tl.arange(0, SIZE)
    real = i < tasks
    flags = screen(K, tasks, SIZE)
    broken = tl.max((real & ((flags == NON_FINITE) | (flags == INVALID_GRAM))).to(tl.int32), axis=0)
    part = real & ((flags | broken) == 0)
    count = tl.sum(part.to(tl.int32), axis=0)
    bits = (c_high.to(tl.int64) << 32) | (c_low.to(tl.int64) & 0xFFFFFFFF)
    c = bits.to(tl.float64, bitcast=True)

    square = tl.load(K + i * (tasks + 1), mask=part, other=0.0)
    largest = tl.max(square, axis=0)
    scale = tl.where(largest > 0, largest, 1.0)
    pairs = part[:, None] & part[None, :]
    A = tl.load(K + i[:, None] * tasks + i[None, :], mask=pairs, other=0.0) / scale
    square = square / scale
    n = tl.maximum(count, 1).to(tl.float64)
    b = times(A, tl.where(part, 1.0, 0.0).to(tl.float64)) / n
    k = c * tl.sqrt(tl.maximum(tl.sum(b, axis=0) / n, 0.0))

    added = tl.zeros([SIZE], tl.float64)
    said = 0
    mean_length = tl.sqrt(tl.maximum(tl.sum(b, axis=0) / n, 0.0))
    mean = tl.sum(tl.sqrt(square), axis=0) / n
    tries = tl.where((count > 0) & (k > 0), 2, 0)
    while tries > 0:
        added, moved, found = pull(A, square, b, k, mean, part, SIZE)
        said = (said & ILL_CONDITIONED) | found
        ratio = mean / mean_length
        reach = length(A, tl.where(part, 1 / n + added, 0.0))
        known = k * (moved + 0.5 * NOISE * ratio * ratio) <= TOLERANCE * reach
        if (tries == 2) & (known == 0) & ((found & STATIONARY) == 0):
            said = said | ILL_CONDITIONED
            A = tl.where(i[:, None] == i[None, :], A * (1 + RIDGE), A)
            square = square * (1 + RIDGE)
            tries = 1
        else:
            tries = 0

    total = tl.where(part, 1 / n + added, 0.0)
    if SUM:
        total = total * n
    if RESCALE == 1:
        total = total / (1 + c * c)
    if RESCALE == 2:
        total = total / (1 + c)
    total = tl.where(flags == ZERO_GRADIENT, 0.0, total)
    total = tl.where(broken > 0, float("nan"), total)
    tl.store(weights + i, total, mask=real)
    tl.store(status + i, flags | said, mask=real)
