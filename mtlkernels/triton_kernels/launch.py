"""Gradient lists as kernels see them: a table of addresses, and blocks of work.

A list of T * P tensors reaches a kernel as T * P addresses in device memory, copied there at every
call: 8 T P bytes from pinned memory, without a synchronisation (480 addresses, 4 KB, for eight
tasks of ResNet-18, whose gradients are 358 MB in float32). The alternatives move more: one flat
copy of all gradients reads and writes 2 T N elements where gram and combine together move (2 T +
1) N; a launch a parameter costs P launches of some microseconds.

Under CUDA-graph capture a copy from host memory would read, at every replay, whatever the host's
memory holds by then. There the addresses go as arguments of small kernels, by value, into the
graph, 32 an argument list: a replay reads the tensors of the capture, as every captured kernel
does.

The blocks of work depend on the sizes alone. They stay on the device from the first call on, which
must therefore come before a capture, as compilation must.

Integers are arguments that Triton does not specialise (do_not_specialize): a kernel compiled for
one number of parameters or of tasks serves every other without a compilation in the middle of a
training run.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from mtlkernels.triton_kernels.gradient_lists import ABSENT

ALIGN = 16  # elements; every parameter's place in a flat direction starts at a multiple of it
BLOCK = 4096  # elements of one parameter at most
BATCH = 32  # addresses an argument list

DTYPES = {
    torch.float32: tl.float32,
    torch.float64: tl.float64,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
}

MAX_PLANS = 64  # parameter sets whose blocks stay on their device


@dataclass
class Blocks:
    """The parameters in blocks of at most BLOCK elements."""

    table: Tensor  # (count, 4) int64: parameter, first element, elements left, flat place
    count: int
    length: int  # of the flat direction
    stream: torch.Stream | None  # that the table's memory belongs to; None on a CPU


_plans: dict[tuple[tuple[int, ...], torch.device], Blocks] = {}
_captured: set[Tensor] = set()  # block tables that a CUDA graph reads for as long as it lives


@dataclass
class GradientList:
    """A checked gradient list on its device."""

    num_tasks: int
    num_params: int
    table: Tensor  # (T * P) int64 addresses
    blocks: Blocks
    aligned: bool  # every address is a multiple of 16 bytes
    dtype: tl.dtype
    wide: tl.dtype  # what products are computed in
    rows: list[Tensor]  # what the addresses point at, kept alive until the kernels are launched


def gradient_list(grads: Sequence[Tensor], num_tasks: int) -> GradientList:
    """Checks a task-major list and puts its addresses on the device."""
    sizes = _check(grads, num_tasks)
    rows = [grad.contiguous() for grad in grads]
    addresses = [row.data_ptr() if row.numel() else ABSENT.value for row in rows]
    dtype = grads[0].dtype
    return GradientList(
        num_tasks,
        len(sizes),
        _to_device(addresses, grads[0].device),
        _blocks(sizes, grads[0].device),
        all(address % 16 == 0 for address in addresses),
        DTYPES[dtype],
        tl.float64 if dtype == torch.float64 else tl.float32,
        rows,
    )


def on_device(tensor: Tensor) -> AbstractContextManager[object]:
    """Makes the tensor's device the current one, where launches go."""
    if tensor.device.type == "cpu":
        return contextlib.nullcontext()
    return getattr(torch, tensor.device.type).device(tensor.device)


def _check(grads: Sequence[Tensor], num_tasks: int) -> tuple[int, ...]:
    """The number of elements of every parameter, 0 where all tasks' gradients are absent."""
    if num_tasks < 1 or len(grads) == 0 or len(grads) % num_tasks:
        raise RuntimeError(
            f"expected a task-major list of num_tasks * P gradients, got {len(grads)} gradients "
            f"for {num_tasks} tasks"
        )
    dtype, device = grads[0].dtype, grads[0].device
    if dtype not in DTYPES:
        raise RuntimeError("gradients must be float32, float64, bfloat16 or float16")
    params = len(grads) // num_tasks
    shapes: list[torch.Size | None] = [None] * params
    for i, grad in enumerate(grads):
        name = f"the gradient of task {i // params} for parameter {i % params}"
        if grad.dtype != dtype:
            raise RuntimeError(
                f"{name} has another dtype than the first of the list: call once for each dtype"
            )
        if grad.device != device:
            raise RuntimeError(f"{name} is not on {device} as the first of the list is")
        if grad.numel() == 0:
            continue
        shape = shapes[i % params]
        if shape is None:
            shapes[i % params] = grad.shape
        elif grad.shape != shape:
            raise RuntimeError(f"{name} has shape {tuple(grad.shape)}, not {tuple(shape)}")
    return tuple(0 if shape is None else shape.numel() for shape in shapes)


def _is_capturing(device: torch.device) -> bool:
    """Whether the current stream of this device is being captured.

    torch answers for the current device, which need not be that of the gradients.
    """
    if device.type != "cuda":
        return False
    with torch.cuda.device(device):
        return torch.cuda.is_current_stream_capturing()


def _current_stream(device: torch.device) -> torch.Stream | None:
    """Where the device's next launch goes; None on a CPU."""
    if device.type == "cpu":
        return None
    return getattr(torch, device.type).current_stream(device)


def _blocks(sizes: tuple[int, ...], device: torch.device) -> Blocks:
    capturing = _is_capturing(device)
    blocks = _plans.get((sizes, device))
    if blocks is None:
        if capturing:
            raise RuntimeError(
                "run the step once before capturing it in a CUDA graph: the first call compiles "
                "kernels and copies its plan of work to the device"
            )
        if len(_plans) == MAX_PLANS:
            del _plans[next(iter(_plans))]
        blocks = _plans[sizes, device] = _make_blocks(sizes, device)
        if device.type == "cuda":
            _by_value([ABSENT.value], device)  # compiled now: a capture is no place for it
    if capturing:
        _captured.add(blocks.table)
    else:
        _hold_for(blocks, _current_stream(device))
    return blocks


def _hold_for(blocks: Blocks, stream: torch.Stream | None) -> None:
    """Keeps an evicted table's memory from other uses until this stream has read it."""
    if stream is not None and stream != blocks.stream:
        blocks.table.record_stream(stream)


def _make_blocks(sizes: tuple[int, ...], device: torch.device) -> Blocks:
    numel = torch.tensor(sizes, dtype=torch.int64)
    padded = (numel + ALIGN - 1) // ALIGN * ALIGN
    flat = padded.cumsum(0) - padded
    each = (numel + BLOCK - 1) // BLOCK
    param = torch.repeat_interleave(each)
    begin = (torch.arange(len(param)) - (each.cumsum(0) - each)[param]) * BLOCK
    table = torch.stack([param, begin, numel[param] - begin, flat[param] + begin], dim=1)
    return Blocks(table.to(device), len(param), int(padded.sum()), _current_stream(device))


def _to_device(addresses: list[int], device: torch.device) -> Tensor:
    """(n) int64 on the device, there for whatever is launched next."""
    if not _is_capturing(device):
        pinned = device.type != "cpu"
        return torch.tensor(addresses, pin_memory=pinned).to(device, non_blocking=True)
    return _by_value(addresses, device)


def _by_value(addresses: list[int], device: torch.device) -> Tensor:
    """The same by launches alone."""
    table = torch.empty(len(addresses), dtype=torch.int64, device=device)
    with on_device(table):
        for first in range(0, len(addresses), BATCH):
            batch = addresses[first : first + BATCH]
            # All are beyond 2^31, so their type is int64 whatever they are: one compiled kernel.
            filled = batch + [ABSENT.value] * (BATCH - len(batch))
            write_addresses[(1,)](table, first, len(addresses), *filled, enable_fp_fusion=True)
    return table


@triton.jit
def put(table, at, count, address):
    """Writes one address where there is room for it."""
    tl.store(table + at, address, mask=at < count)


@triton.jit(
    do_not_specialize=[
        "first",
        "count",
        "a0",
        "a1",
        "a2",
        "a3",
        "a4",
        "a5",
        "a6",
        "a7",
        "a8",
        "a9",
        "a10",
        "a11",
        "a12",
        "a13",
        "a14",
        "a15",
        "a16",
        "a17",
        "a18",
        "a19",
        "a20",
        "a21",
        "a22",
        "a23",
        "a24",
        "a25",
        "a26",
        "a27",
        "a28",
        "a29",
        "a30",
        "a31",
    ]
)
def write_addresses(
    table, first, count,
    a0, a1, a2, a3, a4, a5, a6, a7, a8, a9, a10, a11, a12, a13, a14, a15,
    a16, a17, a18, a19, a20, a21, a22, a23, a24, a25, a26, a27, a28, a29, a30, a31,
):  # fmt: skip
    """Addresses first .. first + 31 of `count`, from the arguments into the table."""
    put(table, first + 0, count, a0)
    put(table, first + 1, count, a1)
    put(table, first + 2, count, a2)
    put(table, first + 3, count, a3)
    put(table, first + 4, count, a4)
    put(table, first + 5, count, a5)
    put(table, first + 6, count, a6)
    put(table, first + 7, count, a7)
    put(table, first + 8, count, a8)
    put(table, first + 9, count, a9)
    put(table, first + 10, count, a10)
    put(table, first + 11, count, a11)
    put(table, first + 12, count, a12)
    put(table, first + 13, count, a13)
    put(table, first + 14, count, a14)
    put(table, first + 15, count, a15)
    put(table, first + 16, count, a16)
    put(table, first + 17, count, a17)
    put(table, first + 18, count, a18)
    put(table, first + 19, count, a19)
    put(table, first + 20, count, a20)
    put(table, first + 21, count, a21)
    put(table, first + 22, count, a22)
    put(table, first + 23, count, a23)
    put(table, first + 24, count, a24)
    put(table, first + 25, count, a25)
    put(table, first + 26, count, a26)
    put(table, first + 27, count, a27)
    put(table, first + 28, count, a28)
    put(table, first + 29, count, a29)
    put(table, first + 30, count, a30)
    put(table, first + 31, count, a31)
