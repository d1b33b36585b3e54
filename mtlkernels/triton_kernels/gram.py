"""K_ij = <g_i, g_j> in one pass over all gradients, in float64.

Products of float32, bfloat16 and float16 elements are exact there. A *triangle* is all pairs of up
to eight rows. Up to eight tasks are one triangle, and every element is read once. More tasks go in
groups of four, a triangle for every two groups: with G groups each element is read G - 1 times, all
but the first from the L2 cache, because the triangles of one segment run side by side.

Order: a block is at most 4096 elements of one parameter. A lane adds at most 32 products of a pair,
lanes are added in a tree, the blocks of a segment in a compensated sum, segments in lanes and a
tree. Blocks and segments follow from the sizes alone, so results are the same bits on every run.
csrc/common/gram_noise.h bounds the error.

A lane loads PARTS neighbours of a row at once, 16 bytes, and takes them apart in its registers.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mtlkernels.triton_kernels.gradient_lists import ABSENT, find_block, find_row, load_piece

SLOTS: tl.constexpr = tl.constexpr(64)  # a triangle of eight rows has 36 pairs
GROUP = 4  # tasks


@triton.jit
def no_products(ROWS: tl.constexpr, LANES: tl.constexpr):
    """A sum for every pair of a triangle, all zero."""
    sums = ()
    for _ in tl.static_range(ROWS * (ROWS + 1) // 2):
        sums = sums + (tl.zeros([LANES], tl.float64),)
    return sums


@triton.jit
def take_apart(x, PARTS: tl.constexpr, LANES: tl.constexpr):
    """A tuple of PARTS tensors: of PARTS neighbours each lane has one in each. PARTS: 2, 4 or 8."""
    even, odd = tl.split(tl.reshape(x, [LANES * PARTS // 2, 2]))
    parts = (even, odd)
    if PARTS >= 4:
        quarters = ()
        for part in tl.static_range(2):
            even, odd = tl.split(tl.reshape(parts[part], [LANES * PARTS // 4, 2]))
            quarters = quarters + (even, odd)
        parts = quarters
    if PARTS == 8:
        eighths = ()
        for part in tl.static_range(4):
            even, odd = tl.split(tl.reshape(parts[part], [LANES, 2]))
            eighths = eighths + (even, odd)
        parts = eighths
    return parts


@triton.jit
def add_products(
    sums,
    rows,
    begin,
    left,
    ROWS: tl.constexpr,
    DTYPE: tl.constexpr,
    WIDE: tl.constexpr,
    PARTS: tl.constexpr,
    LANES: tl.constexpr,
    WHOLE: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """sums + the products of all pairs, LANES * PARTS elements of each row from `begin` on."""
    places = tl.arange(0, LANES * PARTS)
    x = ()
    for r in tl.static_range(ROWS):
        value = load_piece(rows[r], begin, left, places, DTYPE, WIDE, WHOLE, ALIGNED)
        x = x + take_apart(value, PARTS, LANES)
    for part in tl.static_range(PARTS):
        own = ()
        for r in tl.static_range(ROWS):
            own = own + (x[r * PARTS + part].to(tl.float64),)
        added = ()
        for i in tl.static_range(ROWS):
            for j in tl.static_range(i + 1):
                added = added + (sums[i * (i + 1) // 2 + j] + own[i] * own[j],)
        sums = added
    return sums


@triton.jit
def block_products(
    rows,
    begin,
    count,
    ROWS: tl.constexpr,
    DTYPE: tl.constexpr,
    WIDE: tl.constexpr,
    PARTS: tl.constexpr,
    LANES: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """The products of all pairs over `count` elements from `begin` on, LANES sums a pair."""
    sums = no_products(ROWS, LANES)
    step: tl.constexpr = LANES * PARTS
    whole = count // step
    for index in range(whole):
        at = begin + index * step
        sums = add_products(
            sums, rows, at, count, ROWS, DTYPE, WIDE, PARTS, LANES, True, ALIGNED
        )  # fmt: skip
    for index in range(whole, tl.cdiv(count, step)):
        at, left = begin + index * step, count - index * step
        sums = add_products(
            sums, rows, at, left, ROWS, DTYPE, WIDE, PARTS, LANES, False, ALIGNED
        )  # fmt: skip
    return sums


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
    PARTS: tl.constexpr,
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
    rest = tl.zeros([SLOTS], tl.float64)  # what additions to totals round away
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
        sums = block_products(rows, begin, count, ROWS, DTYPE, WIDE, PARTS, LANES, ALIGNED)
        found = tl.zeros([SLOTS], tl.float64)
        for i in tl.static_range(ROWS):  # absent rows are zeros, also beside a NaN
            for j in tl.static_range(i + 1):
                both = (rows[i] != ABSENT) & (rows[j] != ABSENT)
                total = tl.sum(sums[i * (i + 1) // 2 + j], axis=0)
                found = tl.where((slot == i * (i + 1) // 2 + j) & both, total, found)
        after = totals + found  # Knuth's two-sum
        part = after - totals
        rest += (totals - (after - part)) + (found - part)
        totals = after
    totals = tl.where(rest - rest == 0, totals + rest, totals)  # an infinite sum stays so
    at = (triangle.to(tl.int64) * (tl.num_programs(0) // num_triangles) + segment) * SLOTS
    tl.store(partial + at + slot, totals)


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
