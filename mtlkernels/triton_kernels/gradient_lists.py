"""What every kernel over gradient lists does: find a block, find its rows, load a piece of a row.

Addresses come from a table in memory (see launch.py), so the compiler knows nothing of them. Where
the host has seen that all are multiples of 16 bytes, ALIGNED says so, and loads without a mask over
neighbouring elements become 128-bit loads.
"""

from __future__ import annotations

import triton
import triton.language as tl

# What the table holds for an absent gradient: no address of any machine, and an int64 like those.
ABSENT: tl.constexpr = tl.constexpr(1 << 62)


@triton.jit
def find_block(blocks, index):
    """Where block `index` lies: its parameter, its first element there, how many elements of the
    parameter there are from it on, and its place in the flat direction; all int64."""
    param = tl.load(blocks + 4 * index)
    begin = tl.load(blocks + 4 * index + 1)
    left = tl.load(blocks + 4 * index + 2)
    flat = tl.load(blocks + 4 * index + 3)
    return param, begin, left, tl.multiple_of(flat, 16)


@triton.jit
def find_row(table, task, num_tasks, param, num_params):
    """The address of a task's gradient for a parameter; ABSENT also beyond the last task."""
    return tl.load(table + param + task * num_params, mask=task < num_tasks, other=ABSENT)


@triton.jit
def load_piece(
    address,
    begin,
    left,
    lanes,
    DTYPE: tl.constexpr,
    WIDE: tl.constexpr,
    WHOLE: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """Elements begin + lanes of a row as WIDE; zeros where the row is absent, and where it ends
    unless all lanes are known to be inside (WHOLE)."""
    places = address.to(tl.pointer_type(DTYPE)) + begin + lanes
    if ALIGNED:
        places = tl.multiple_of(places, 16)  # begin is a multiple of 16 elements
    present = address + tl.zeros_like(lanes) != ABSENT  # one a lane, all the same
    mask = present if WHOLE else (lanes < left) & present
    return widen(tl.load(places, mask=mask, other=0.0), DTYPE, WIDE)


@triton.jit
def widen(x, DTYPE: tl.constexpr, WIDE: tl.constexpr):
    """Elements as WIDE, exactly; 16 bits by way of float32, which every conversion knows."""
    if tl.float64 != DTYPE:
        x = x.to(tl.float32)
    return x.to(WIDE)
