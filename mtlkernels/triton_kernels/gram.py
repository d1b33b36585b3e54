"""K_ij = <g_i, g_j> in one pass over all gradients, float32 products, float64 sums.

A *triangle* is all pairs of up to eight rows. Up to eight tasks are one triangle, and every
element is read once. More tasks go in groups of four, a triangle for every two groups: with G
groups each element is read G - 1 times, all but the first from the L2 cache, because the triangles
of one segment run side by side.

Order: a block is at most 4096 elements of one parameter. Its products add up in float32, a few a
lane, then across lanes; blocks add up in float64, in order inside a segment; segments add up in
float64. Blocks and segments follow from the sizes alone, so results are the same bits on every
run.

float32 squares leave float32's range beyond 1e19 and below 1e-17. A block in which a norm says so
is done again with every row scaled by a power of two to about 1, which is exact, and the products
are scaled back in float64.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mtlkernels.triton_kernels.rows import ABSENT, find_block, find_row, load_piece

SLOTS: tl.constexpr = tl.constexpr(64)  # a triangle of eight rows has 36 pairs
GROUP = 4  # tasks


@triton.jit
def no_products(ROWS: tl.constexpr, WIDE: tl.constexpr, LANES: tl.constexpr):
    """A sum for every pair of a triangle, all zero."""
    sums = ()
    for _ in tl.static_range(ROWS * (ROWS + 1) // 2):
        sums = sums + (tl.zeros([LANES], WIDE),)
    return sums


@triton.jit
def add_products(
    sums,
    rows,
    scales,
    begin,
    left,
    ROWS: tl.constexpr,
    DTYPE: tl.constexpr,
    WIDE: tl.constexpr,
    LANES: tl.constexpr,
    WHOLE: tl.constexpr,
    ALIGNED: tl.constexpr,
    SCALED: tl.constexpr,
):
    """sums + the products of all pairs, LANES elements of each row from `begin` on."""
    lanes = tl.arange(0, LANES)
    x = ()
    for r in tl.static_range(ROWS):
        value = load_piece(rows[r], begin, left, lanes, DTYPE, WIDE, WHOLE, ALIGNED)
        if SCALED:
            value = value * scales[r]
        x = x + (value,)
    added = ()
    for i in tl.static_range(ROWS):
        for j in tl.static_range(i + 1):
            added = added + (sums[i * (i + 1) // 2 + j] + x[i] * x[j],)
    return added


@triton.jit
def block_products(
    rows,
    scales,
    begin,
    count,
    ROWS: tl.constexpr,
    DTYPE: tl.constexpr,
    WIDE: tl.constexpr,
    LANES: tl.constexpr,
    ALIGNED: tl.constexpr,
    SCALED: tl.constexpr,
):
    """The products of all pairs over `count` elements from `begin` on, LANES sums a pair."""
    sums = no_products(ROWS, WIDE, LANES)
    whole = count // LANES
    for step in range(whole):
        at = begin + step * LANES
        sums = add_products(
            sums, rows, scales, at, count, ROWS, DTYPE, WIDE, LANES, True, ALIGNED, SCALED
        )  # fmt: skip
    for step in range(whole, tl.cdiv(count, LANES)):
        at, left = begin + step * LANES, count - step * LANES
        sums = add_products(
            sums, rows, scales, at, left, ROWS, DTYPE, WIDE, LANES, False, ALIGNED, SCALED
        )  # fmt: skip
    return sums


@triton.jit
def largest(
    row,
    begin,
    count,
    DTYPE: tl.constexpr,
    WIDE: tl.constexpr,
    LANES: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """The largest magnitude of a row over `count` elements from `begin` on."""
    lanes = tl.arange(0, LANES)
    found = tl.zeros([LANES], WIDE)
    for step in range(tl.cdiv(count, LANES)):
        at, left = begin + step * LANES, count - step * LANES
        x = load_piece(row, at, left, lanes, DTYPE, WIDE, False, ALIGNED)
        found = tl.maximum(found, tl.abs(x))
    return tl.max(found, axis=0)


@triton.jit
def powers_about(size):
    """Two exact powers of two: one within a factor of two of a float32 size, and its inverse.

    At most 2^125, so that the inverse is no denormal; also for infinities and NaN.
    """
    exponent = tl.minimum(tl.maximum((size.to(tl.int32, bitcast=True) >> 23) & 255, 1), 252)
    power = (exponent << 23).to(tl.float32, bitcast=True)
    inverse = ((254 - exponent) << 23).to(tl.float32, bitcast=True)
    return power.to(tl.float64), inverse


@triton.jit(
    do_not_specialize=[
        "num_blocks",
        "blocks_per_segment",
        "num_tasks",
        "num_params",
        "num_triangles",
    ]
)
def gram_kernel(
    table,
    blocks,
    partial,
    num_blocks,
    blocks_per_segment,
    num_tasks,
    num_params,
    num_triangles,
    ROWS: tl.constexpr,
    GROUP: tl.constexpr,
    DTYPE: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
    LANES: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """One triangle over one segment. partial: (triangles, segments, SLOTS) float64; GROUP is 0
    where there is one triangle."""
    triangle = tl.program_id(0) % num_triangles
    segment = tl.program_id(0) // num_triangles
    upper = 1
    while upper * (upper + 1) // 2 <= triangle:  # triangle = upper (upper - 1) / 2 + lower
        upper += 1
    lower = triangle - upper * (upper - 1) // 2

    slot = tl.arange(0, SLOTS)
    totals = tl.zeros([SLOTS], tl.float64)
    first = segment.to(tl.int64) * blocks_per_segment
    for index in range(first, tl.minimum(first + blocks_per_segment, num_blocks)):
        param, begin, left, _ = find_block(blocks, index)
        count = tl.minimum(left, BLOCK).to(tl.int32)
        rows = ()
        for r in tl.static_range(ROWS):
            if GROUP > 0:
                task = GROUP * (lower if r < GROUP else upper) + r % GROUP
            else:
                task = r
            rows = rows + (find_row(table, task, num_tasks, param, num_params),)
        sums = block_products(rows, (), begin, count, ROWS, DTYPE, WIDE, LANES, ALIGNED, False)
        found = tl.zeros([SLOTS], tl.float64)
        for p in tl.static_range(ROWS * (ROWS + 1) // 2):
            found = tl.where(slot == p, tl.sum(sums[p], axis=0).to(tl.float64), found)
        if tl.float32 == WIDE:
            found = in_range(
                found, sums, rows, begin, count, slot, ROWS, DTYPE, WIDE, LANES, ALIGNED
            )  # fmt: skip
        for i in tl.static_range(ROWS):  # absent rows are zeros, also beside a NaN
            for j in tl.static_range(i + 1):
                both = (rows[i] != ABSENT) & (rows[j] != ABSENT)
                found = tl.where((slot == i * (i + 1) // 2 + j) & (both == 0), 0.0, found)
        totals += found
    at = (triangle.to(tl.int64) * (tl.num_programs(0) // num_triangles) + segment) * SLOTS
    tl.store(partial + at + slot, totals)


@triton.jit
def in_range(
    found,
    sums,
    rows,
    begin,
    count,
    slot,
    ROWS: tl.constexpr,
    DTYPE: tl.constexpr,
    WIDE: tl.constexpr,
    LANES: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """A block's sums; from scaled rows where a square has left float32's range."""
    outside = False
    for i in tl.static_range(ROWS):
        square = tl.sum(sums[i * (i + 1) // 2 + i], axis=0)
        inside = (square > 1e-30) & (square < 1e38)
        outside = outside | ((inside == 0) & (rows[i] != ABSENT))
    if outside:
        powers = ()
        scales = ()
        for i in tl.static_range(ROWS):
            size = largest(rows[i], begin, count, DTYPE, WIDE, LANES, ALIGNED)
            power, inverse = powers_about(size)
            powers = powers + (power,)
            scales = scales + (inverse,)
        again = block_products(rows, scales, begin, count, ROWS, DTYPE, WIDE, LANES, ALIGNED, True)
        for i in tl.static_range(ROWS):
            for j in tl.static_range(i + 1):
                dot = tl.sum(again[i * (i + 1) // 2 + j], axis=0).to(tl.float64)
                found = tl.where(slot == i * (i + 1) // 2 + j, dot * powers[i] * powers[j], found)
    return found


@triton.jit(do_not_specialize=["num_segments", "num_tasks"])
def finish_kernel(partial, K, num_segments, num_tasks, GROUP: tl.constexpr, LANES: tl.constexpr):
    """Adds the segments of one pair up and writes K_ij and K_ji."""
    i = tl.program_id(0)
    j = tl.program_id(1)
    if j <= i:
        triangle = 0
        a, b = i, j
        if GROUP > 0:
            upper, lower = i // GROUP, j // GROUP
            a, b = i % GROUP, j % GROUP
            if upper > 0:
                a += GROUP
                if upper == lower:  # inside a group: found in its triangle with group 0
                    lower = 0
                    b += GROUP
            else:  # inside group 0: found in its triangle with group 1
                upper = 1
            triangle = upper * (upper - 1) // 2 + lower
        slot = a * (a + 1) // 2 + b
        lanes = tl.arange(0, LANES)
        sums = tl.zeros([LANES], tl.float64)
        for first in range(0, num_segments, LANES):
            segment = first + lanes
            at = (triangle * num_segments + segment).to(tl.int64) * SLOTS + slot
            sums += tl.load(partial + at, mask=segment < num_segments, other=0.0)
        total = tl.sum(sums, axis=0)
        tl.store(K + i * num_tasks + j, total)
        tl.store(K + j * num_tasks + i, total)
