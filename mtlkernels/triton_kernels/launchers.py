"""One function an op: checks, memory, grid, launch. Nothing here waits for the device."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import torch
import triton
from torch import Tensor

from mtlkernels.triton_kernels.cagrad import cagrad_kernel
from mtlkernels.triton_kernels.combine import combine_kernel
from mtlkernels.triton_kernels.graddrop import graddrop_kernel
from mtlkernels.triton_kernels.gram import GROUP, SLOTS, finish_kernel, gram_kernel
from mtlkernels.triton_kernels.launch import (
    BLOCK,
    DTYPES,
    GradientList,
    gradient_list,
    on_device,
)
from mtlkernels.triton_kernels.pcgrad import pcgrad_kernel

MAX_TRIANGLE = 8  # tasks whose pairs all fit the registers of one program
GRAM_LANES = 128  # sums of a pair, one a thread
MAX_UNROLLED = 8  # tasks whose loads are under way at once
MAX_PROGRAMS = 4096  # of a Gram matrix, where there is as much work
PIECE = 1024  # elements of a program of combine and graddrop
FUSED = True  # multiply-add, whatever Triton's default is
MAX_SOLVER_TASKS = 64


def gram(grads: Sequence[Tensor], num_tasks: int) -> Tensor:
    """K_ij = <g_i, g_j>, (T, T) float64; see gram.py."""
    work = gradient_list(grads, num_tasks)
    if work.blocks.count == 0:
        return grads[0].new_zeros((num_tasks, num_tasks), dtype=torch.float64)
    grouped = num_tasks > MAX_TRIANGLE
    groups = -(-num_tasks // GROUP)
    triangles = groups * (groups - 1) // 2 if grouped else 1
    rows = 2 * GROUP if grouped else num_tasks
    per_segment = -(-work.blocks.count // max(1, MAX_PROGRAMS // triangles))
    segments = -(-work.blocks.count // per_segment)
    partial = grads[0].new_empty((triangles, segments, SLOTS.value), dtype=torch.float64)
    K = grads[0].new_empty((num_tasks, num_tasks), dtype=torch.float64)
    with on_device(K):
        gram_kernel[(triangles * segments,)](
            *(work.table, work.blocks.table, partial, work.blocks.count, per_segment),
            *(num_tasks, work.num_params, triangles),
            ROWS=rows,
            GROUP=GROUP if grouped else 0,
            **_types(work),
            PARTS=16 // grads[0].element_size(),
            LANES=GRAM_LANES,
            num_warps=4,
            enable_fp_fusion=FUSED,
        )
        finish_kernel[(num_tasks, num_tasks)](
            *(partial, K, segments, num_tasks),
            GROUP=GROUP if grouped else 0,
            LANES=512,
            num_warps=4,
            enable_fp_fusion=FUSED,
        )
    return K


def combine(grads: Sequence[Tensor], weights: Tensor) -> Tensor:
    """sum_t w_t g_t as one flat vector; see combine.py."""
    _check_weights(weights)
    work = gradient_list(grads, weights.numel())
    out = grads[0].new_empty(work.blocks.length)
    _combine(work, weights, out, 0.0)
    return out


def combine_out(grads: Sequence[Tensor], weights: Tensor, out: Tensor, beta: float) -> None:
    """out <- beta * out + sum_t w_t g_t."""
    _check_weights(weights)
    work = gradient_list(grads, weights.numel())
    widened = out.dtype == torch.float32 and grads[0].dtype.itemsize == 2
    if out.device != grads[0].device or not (widened or out.dtype == grads[0].dtype):
        raise RuntimeError(
            "out must have the gradients' device and dtype, or float32 for bfloat16 or float16 "
            "gradients"
        )
    if out.shape != (work.blocks.length,) or not out.is_contiguous():
        raise RuntimeError(
            f"out must be a contiguous vector of {work.blocks.length} elements, as combine "
            "returns it"
        )
    _combine(work, weights, out, beta)


def _combine(work: GradientList, weights: Tensor, out: Tensor, beta: float) -> None:
    if work.blocks.count == 0:
        return
    high, low = _halves(beta)
    with on_device(out):
        combine_kernel[(work.blocks.count * (BLOCK // PIECE),)](
            *(work.table, work.blocks.table, weights, weights.stride(0), out, high, low),
            *(work.num_tasks, work.num_params),
            UNROLLED=work.num_tasks if work.num_tasks <= MAX_UNROLLED else 0,
            ACCUMULATE=beta != 0,
            **_types(work),
            OUT=DTYPES[out.dtype],
            LANES=PIECE,
            num_warps=8,
            enable_fp_fusion=FUSED,
        )


def graddrop(
    grads: Sequence[Tensor], num_tasks: int, seed: Tensor, step: Tensor, leak: Tensor
) -> Tensor:
    """GradDrop's flat direction; see graddrop.py. seed, step: int64 scalars, leak: (T) float64."""
    if any(x.numel() != 1 or x.dtype != torch.int64 for x in (seed, step)):
        raise RuntimeError("seed and step must be int64 scalars")
    if leak.shape != (num_tasks,) or leak.dtype != torch.float64:
        raise RuntimeError("leak must be a float64 vector with one entry a task")
    work = gradient_list(grads, num_tasks)
    if any(x.device != grads[0].device for x in (seed, step, leak)):
        raise RuntimeError("seed, step and leak must be on the gradients' device")
    out = grads[0].new_empty(work.blocks.length)
    if work.blocks.count:
        with on_device(out):
            graddrop_kernel[(work.blocks.count * (BLOCK // PIECE),)](
                *(work.table, work.blocks.table, seed, step, leak, leak.stride(0), out),
                *(num_tasks, work.num_params),
                **_types(work),
                LANES=PIECE,
                num_warps=8,
                enable_fp_fusion=FUSED,
            )
    return out


def pcgrad(gram: Tensor, order: Tensor, mean: bool) -> tuple[Tensor, Tensor]:
    """PCGrad's weights (T) float64 and status (T) int64 from K; see pcgrad.py."""
    T = _checked_tasks(gram)
    if order.shape != (T, T - 1) or order.dtype != torch.int64 or order.device != gram.device:
        raise RuntimeError("order must be a contiguous int64 matrix (T, T - 1) on gram's device")
    if order.device.type == "cpu" and not ((order >= 0) & (order < T)).all():
        raise RuntimeError(f"order names a task outside 0 .. {T - 1}")
    weights = gram.new_empty(T)
    status = gram.new_empty(T, dtype=torch.int64)
    size = max(2, triton.next_power_of_2(T))
    with on_device(gram):
        pcgrad_kernel[(1,)](
            *(gram.contiguous(), order.contiguous(), weights, status, T),
            MEAN=mean,
            SIZE=size,
            num_warps=8 if size > 16 else 1,
            enable_fp_fusion=FUSED,
        )
    return weights, status


def cagrad(gram: Tensor, c: float, rescale: int, sum: bool) -> tuple[Tensor, Tensor]:
    """CAGrad's weights (T) float64 and status (T) int64 from K; see cagrad.py."""
    T = _checked_tasks(gram)
    if not (0 <= c < float("inf")):
        raise RuntimeError("c must be finite and at least 0")
    if rescale not in (0, 1, 2):
        raise RuntimeError("rescale must be 0, 1 or 2")
    weights = gram.new_empty(T)
    status = gram.new_empty(T, dtype=torch.int64)
    size = max(2, triton.next_power_of_2(T))
    with on_device(gram):
        cagrad_kernel[(1,)](
            *(gram.contiguous(), weights, status, *_halves(c), T),
            RESCALE=rescale,
            SUM=sum,
            SIZE=size,
            num_warps=solver_warps(size),
            enable_fp_fusion=False,  # as the interpreter adds, in which this is tested
        )
    return weights, status


def solver_warps(size: int) -> int:
    """Warps of a program whose tiles are size x size: what leaves two of them in registers."""
    return 1 if size <= 8 else size // 4


def _checked_tasks(gram: Tensor) -> int:
    if gram.dim() != 2 or gram.shape[0] != gram.shape[1] or gram.shape[0] < 1:
        raise RuntimeError("gram must be a square matrix")
    if gram.dtype != torch.float64:
        raise RuntimeError("gram must be float64, as ops.gram returns it")
    if gram.shape[0] > MAX_SOLVER_TASKS:
        raise RuntimeError(
            f"gram has {gram.shape[0]} tasks: this kernel takes at most {MAX_SOLVER_TASKS}"
        )
    return gram.shape[0]


def _halves(x: float) -> tuple[int, int]:
    """The high and the low half of a float64: as an argument, a float would be float32."""
    low, high = struct.unpack("<ii", struct.pack("<d", x))
    return high, low


def _types(work: GradientList) -> dict[str, object]:
    return {"DTYPE": work.dtype, "WIDE": work.wide, "BLOCK": BLOCK, "ALIGNED": work.aligned}


def _check_weights(weights: Tensor) -> None:
    if weights.dim() != 1 or weights.numel() < 1:
        raise RuntimeError("weights must be a vector with one entry a task")
    if weights.dtype not in (torch.float64, torch.float32):
        raise RuntimeError("weights must be float64 or float32")
