"""GradDrop (arXiv 2010.06808): at each element, drop the gradients whose sign loses.

With x_t the tasks' elements, S = sum x_t and A = sum |x_t|, a threshold tau uniform in (-1, 1)
keeps positive elements where S > tau A and negative ones where S < tau A; S = A and S = -A keep
what all tasks agree on. A dropped element still counts with its task's leak. An element of which A
or the answer is not finite in float32 is computed again in float64. Rows are read twice,
the second time from the cache: (T + 1) N elements of traffic.

tau comes from Philox4x32-10 (Salmon et al., SC'11): word k % 4 of counter (k / 4, step) under the
key seed, where k is the element's place in the flat direction; of it 24 bits m, tau = (2 m + 1) /
2^24 - 1.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mtlkernels.triton_kernels.gradient_lists import find_block, find_row, load_piece


@triton.jit
def low(x):
    """The low half of an int64."""
    return (x & 0xFFFFFFFF).to(tl.uint32)


@triton.jit
def high(x):
    """The high half of an int64."""
    return ((x >> 32) & 0xFFFFFFFF).to(tl.uint32)


@triton.jit
def thresholds(seed, step, flat, LANES: tl.constexpr, WIDE: tl.constexpr):
    """tau of LANES elements from place `flat` on, which is a multiple of 4."""
    counter = flat // 4 + tl.arange(0, LANES // 4).to(tl.int64)
    none = tl.zeros([LANES // 4], tl.uint32)
    w0, w1, w2, w3 = tl.philox_impl(
        low(counter), high(counter), none + low(step), none + high(step), low(seed), high(seed)
    )
    words = tl.reshape(tl.join(tl.join(w0, w2), tl.join(w1, w3)), [LANES])
    odd = 2 * (words >> 8).to(tl.int32) + (1 - (1 << 24))
    return odd.to(WIDE) * (1.0 / (1 << 24))


@triton.jit
def kept_sums(
    table, leak, leak_stride, draw, num_tasks, num_params, param, begin, left,
    DTYPE: tl.constexpr, WIDE: tl.constexpr, LANES: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """The direction of a piece and the sums of sizes A, both as WIDE."""
    lanes = tl.arange(0, LANES)
    S = tl.zeros([LANES], WIDE)
    A = tl.zeros([LANES], WIDE)
    for t in range(num_tasks):
        row = find_row(table, t, num_tasks, param, num_params)
        x = load_piece(row, begin, left, lanes, DTYPE, WIDE, False, ALIGNED)
        S += x
        A += tl.abs(x)
    bound = draw.to(WIDE) * A
    positive = (bound < S) | (S == A)
    negative = (bound > S) | (S == -A)
    total = tl.zeros([LANES], WIDE)
    for t in range(num_tasks):
        row = find_row(table, t, num_tasks, param, num_params)
        x = load_piece(row, begin, left, lanes, DTYPE, WIDE, False, ALIGNED)
        kept = ((x > 0) & positive) | ((x < 0) & negative)
        total += tl.where(kept, 1.0, tl.load(leak + t * leak_stride).to(WIDE)) * x
    return total, A


@triton.jit(do_not_specialize=["leak_stride", "num_tasks", "num_params"])
def graddrop_kernel(
    table,
    blocks,
    seed,
    step,
    leak,
    leak_stride,
    out,
    num_tasks,
    num_params,
    DTYPE: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
    LANES: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """One piece of LANES elements of a block."""
    pieces: tl.constexpr = BLOCK // LANES
    param, begin, left, flat = find_block(blocks, tl.program_id(0) // pieces)
    skip = tl.program_id(0) % pieces * LANES
    begin, left, flat = begin + skip, left - skip, flat + skip
    if left > 0:
        lanes = tl.arange(0, LANES)
        draw = thresholds(tl.load(seed), tl.load(step), flat, LANES, WIDE)
        total, A = kept_sums(
            table, leak, leak_stride, draw, num_tasks, num_params, param, begin, left,
            DTYPE, WIDE, LANES, ALIGNED,
        )  # fmt: skip
        if tl.float32 == WIDE:
            spoilt = ((A - A != 0) | (total - total != 0)) & (lanes < left)
            if tl.max(spoilt.to(tl.int32), axis=0) > 0:
                again, _ = kept_sums(
                    table, leak, leak_stride, draw, num_tasks, num_params, param, begin, left,
                    DTYPE, tl.float64, LANES, ALIGNED,
                )  # fmt: skip
                total = tl.where(spoilt, again.to(tl.float32), total)
        place = out + tl.multiple_of(flat, 16) + lanes
        tl.store(place, total.to(DTYPE), mask=lanes < (left + 15) // 16 * 16)
