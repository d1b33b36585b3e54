"""d = sum_t w_t g_t in one pass: (T + 1) N elements of traffic, accumulated in the order of the
tasks in float32 (float64 for float64) and rounded once, to the rows' type or to float32.

A factor that is not zero and whose size lies outside 1e-30 .. 1e30 makes it a float64 sum: in
float32 it would be infinite or have lost bits, or its product with an element would. Every program
sees the same factors and decides alike. An element whose float32 sum is not finite is added up in
float64 too: what overflowed may have been a part of a sum that fits.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mtlkernels.triton_kernels.gradient_lists import ABSENT, find_block, find_row, load_piece, widen


@triton.jit(do_not_specialize=["weight_stride", "beta_high", "beta_low", "num_tasks", "num_params"])
def combine_kernel(
    table,
    blocks,
    weights,
    weight_stride,
    out,
    beta_high,
    beta_low,
    num_tasks,
    num_params,
    UNROLLED: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    DTYPE: tl.constexpr,
    OUT: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
    LANES: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """One piece of LANES elements of a block; OUT: of the direction. beta_high, beta_low: the
    halves of beta's float64 bits, because a float argument is float32."""
    pieces: tl.constexpr = BLOCK // LANES
    param, begin, left, flat = find_block(blocks, tl.program_id(0) // pieces)
    skip = tl.program_id(0) % pieces * LANES
    begin, left, flat = begin + skip, left - skip, flat + skip
    if left > 0:
        bits = (beta_high.to(tl.int64) << 32) | (beta_low.to(tl.int64) & 0xFFFFFFFF)
        beta = bits.to(tl.float64, bitcast=True)
        if is_wide(weights, weight_stride, beta, num_tasks, WIDE):
            combine_piece(
                table, weights, weight_stride, out, beta, num_tasks, num_params, param, begin,
                left, flat, 0, ACCUMULATE, DTYPE, OUT, tl.float64, LANES, False, ALIGNED,
            )  # fmt: skip
        elif left >= LANES:
            combine_piece(
                table, weights, weight_stride, out, beta, num_tasks, num_params, param, begin,
                left, flat, UNROLLED, ACCUMULATE, DTYPE, OUT, WIDE, LANES, True, ALIGNED,
            )  # fmt: skip
        else:
            combine_piece(
                table, weights, weight_stride, out, beta, num_tasks, num_params, param, begin,
                left, flat, UNROLLED, ACCUMULATE, DTYPE, OUT, WIDE, LANES, False, ALIGNED,
            )  # fmt: skip


@triton.jit
def outside_float(factor):
    """Whether a float32 sum should not take a float64 factor; not for zero and for NaN."""
    size = tl.abs(factor)
    return (size > 1e30) | ((size > 0) & (size < 1e-30))


@triton.jit
def is_wide(weights, weight_stride, beta, num_tasks, WIDE: tl.constexpr):
    """Whether a float32 sum has to be a float64 one."""
    wide = False
    if tl.float32 == WIDE:
        wide = outside_float(beta)
        for t in range(num_tasks):
            wide = wide | outside_float(tl.load(weights + t * weight_stride).to(tl.float64))
    return wide


@triton.jit
def combine_piece(
    table, weights, weight_stride, out, beta, num_tasks, num_params, param, begin, left, flat,
    UNROLLED: tl.constexpr, ACCUMULATE: tl.constexpr, DTYPE: tl.constexpr, OUT: tl.constexpr,
    WIDE: tl.constexpr, LANES: tl.constexpr, WHOLE: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """Elements that are the parameter's, and zeros up to the next multiple of 16."""
    lanes = tl.arange(0, LANES)
    place = out + tl.multiple_of(flat, 16) + lanes
    padded = (left + 15) // 16 * 16
    total = weighted_sum(
        table, weights, weight_stride, place, beta, num_tasks, num_params, param, begin, left,
        UNROLLED, ACCUMULATE, DTYPE, OUT, WIDE, LANES, WHOLE, ALIGNED,
    )  # fmt: skip
    if tl.float32 == WIDE:
        spoilt = (total - total != 0) & (lanes < left)
        if tl.max(spoilt.to(tl.int32), axis=0) > 0:
            again = weighted_sum(
                table, weights, weight_stride, place, beta, num_tasks, num_params, param, begin,
                left, 0, ACCUMULATE, DTYPE, OUT, tl.float64, LANES, False, ALIGNED,
            )  # fmt: skip
            total = tl.where(spoilt, again.to(tl.float32), total)
    if tl.float64 != OUT:
        total = total.to(tl.float32)
    if WHOLE:
        tl.store(place, total.to(OUT))
    else:
        total = tl.where(lanes < left, total, 0.0)  # zero also beside a weight that is NaN
        tl.store(place, total.to(OUT), mask=lanes < padded)


@triton.jit
def weighted_sum(
    table, weights, weight_stride, place, beta, num_tasks, num_params, param, begin, left,
    UNROLLED: tl.constexpr, ACCUMULATE: tl.constexpr, DTYPE: tl.constexpr, OUT: tl.constexpr,
    WIDE: tl.constexpr, LANES: tl.constexpr, WHOLE: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """The sums of a piece as WIDE. place: where they go, read where ACCUMULATE."""
    lanes = tl.arange(0, LANES)
    if ACCUMULATE:
        if WHOLE:
            total = beta.to(WIDE) * widen(tl.load(place), OUT, WIDE)
        else:
            old = tl.load(place, mask=lanes < left, other=0.0)
            total = beta.to(WIDE) * widen(old, OUT, WIDE)
    else:
        total = tl.zeros([LANES], WIDE)
    if UNROLLED > 0:  # all loads under way at once
        for t in tl.static_range(UNROLLED):
            total = add_row(
                total, t, table, weights, weight_stride, num_tasks,
                num_params, param, begin, left, lanes, DTYPE, WIDE, WHOLE, ALIGNED,
            )  # fmt: skip
    else:
        for t in range(num_tasks):
            total = add_row(
                total, t, table, weights, weight_stride, num_tasks,
                num_params, param, begin, left, lanes, DTYPE, WIDE, WHOLE, ALIGNED,
            )  # fmt: skip
    return total


@triton.jit
def add_row(
    total, task, table, weights, weight_stride, num_tasks, num_params, param, begin, left, lanes,
    DTYPE: tl.constexpr, WIDE: tl.constexpr, WHOLE: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """total + w_t x_t; nothing is added for an absent row, whatever its weight."""
    row = find_row(table, task, num_tasks, param, num_params)
    weight = tl.load(weights + task * weight_stride).to(WIDE)
    weight = tl.where(row != ABSENT, weight, 0.0)
    return total + weight * load_piece(row, begin, left, lanes, DTYPE, WIDE, WHOLE, ALIGNED)
