"""PCGrad's weights (arXiv 2001.06782) from K, all float64, in one program.

Row i of C is task i's projected gradient in terms of the originals. All rows walk their own order
at once: v_i meets g_j, and where v_i . g_j < 0, C_ij -= (C_i K_:j) / K_jj. The weights are C^T 1.
"""

from __future__ import annotations

import triton
import triton.language as tl

NON_FINITE: tl.constexpr = tl.constexpr(1)
ZERO_GRADIENT: tl.constexpr = tl.constexpr(2)
INVALID_GRAM: tl.constexpr = tl.constexpr(128)
ASYMMETRY: tl.constexpr = tl.constexpr(1e-6)  # K_ij and K_ji may differ by this share


@triton.jit
def is_finite(x):
    """Neither NaN nor infinite."""
    return tl.abs(x) < float("inf")


@triton.jit
def screen(K, tasks, SIZE: tl.constexpr):
    """(SIZE) flags: what K says of each task's gradient, 0 beyond the last task."""
    i = tl.arange(0, SIZE)
    real = i < tasks
    square = tl.load(K + i * (tasks + 1), mask=real, other=1.0)
    both = real[:, None] & real[None, :]
    tile = tl.load(K + i[:, None] * tasks + i[None, :], mask=both, other=0.0)
    back = tl.load(K + i[None, :] * tasks + i[:, None], mask=both, other=0.0)
    known = is_finite(square)
    bad = known == 0
    # Beside a task that is not finite every product is not: only the others' columns tell.
    odd = (is_finite(tile) == 0) & known[None, :]
    bad = bad | (tl.max(odd.to(tl.int32), axis=1) > 0)
    length = tl.sqrt(square)
    limit = ASYMMETRY * (length[:, None] * length[None, :] + tl.abs(tile) + tl.abs(back))
    uneven = tl.max((tl.abs(tile - back) > limit).to(tl.int32), axis=1) > 0
    flags = tl.where(square == 0, ZERO_GRADIENT, 0)
    flags = tl.where(uneven | (square < 0), INVALID_GRAM, flags)
    return tl.where(bad, NON_FINITE, flags).to(tl.int64)


@triton.jit(do_not_specialize=["tasks"])
def pcgrad_kernel(K, order, weights, status, tasks, MEAN: tl.constexpr, SIZE: tl.constexpr):
    """K: (T, T) float64, order: (T, T - 1) int64, both dense; SIZE >= T."""
    i = tl.arange(0, SIZE)
    real = i < tasks
    flags = screen(K, tasks, SIZE)
    C = (i[:, None] == i[None, :]).to(tl.float64)
    for visit in range(tasks - 1):
        j = tl.load(order + i * (tasks - 1) + visit, mask=real, other=0)
        known = real & (j >= 0) & (j < tasks)
        column = K + i[None, :] * tasks + j[:, None]
        met = tl.load(column, mask=known[:, None] & real[None, :], other=0.0)
        square = tl.load(K + j * (tasks + 1), mask=known, other=0.0)
        dot = tl.sum(C * met, axis=1)
        against = (dot < 0) & (square > 0)
        step = tl.where(against, dot / tl.where(against, square, 1.0), 0.0)
        C = C - tl.where(i[None, :] == j[:, None], step[:, None], 0.0)
    part = real & (flags == 0)
    total = tl.sum(tl.where(part[:, None], C, 0.0), axis=0)
    if MEAN:
        total = total / tl.sum(part.to(tl.float64), axis=0)
    broken = tl.max((real & ((flags == NON_FINITE) | (flags == INVALID_GRAM))).to(tl.int32), axis=0)
    total = tl.where(flags == ZERO_GRADIENT, 0.0, total)
    total = tl.where(broken > 0, float("nan"), total)
    tl.store(weights + i, total, mask=real)
    tl.store(status + i, flags, mask=real)
