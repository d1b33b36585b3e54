"""Stages "native-rows" and "triton-rows": a copy, gram, combine, GradDrop and the whole direction.

The largest case comes first; gradients are drawn on the device. A row has the bytes that its run
has to move: beside the copy of as many bytes, its share of the memory's bandwidth follows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks.arithmetic.roofline import moved
from benchmarks.gpu_check.records import Records, device, is_short
from benchmarks.gpu_check.timing import Deadline, record, synchronize
from benchmarks.suite.cases import CASES, Shapes
from benchmarks.suite.providers import ours
from mtlkernels import ops

SETTINGS = [
    *((case, T, "float32") for case in ("vit_b", "resnet50") for T in (8, 3)),
    *((case, 3, "bfloat16") for case in ("vit_b", "resnet50")),
    *(("resnet18", T, "float32") for T in (2, 3, 8, 20, 64)),
    *((case, 3, "float32") for case in ("lora", "segnet_mtan", "lenet")),
    *((case, T, "bfloat16") for case, T in (("resnet18", 8), ("resnet18", 64), ("lora", 3))),
]
SMALL: Shapes = [(5, 7), (11,), (2, 3, 4)]


def drawn(shapes: Shapes, T: int, dtype: torch.dtype) -> list[Tensor]:
    """A task-major list of normal gradients, each tensor in memory of its own."""
    torch.manual_seed(0)
    return [torch.randn(shape, device=device()).to(dtype) for _ in range(T) for shape in shapes]


def measure(records: Records, case: str, T: int, dtype: torch.dtype) -> None:
    shapes = SMALL if is_short() else CASES[case]()
    grads = drawn(shapes, T, dtype)
    size = grads[0].element_size()
    reads, both = moved(sum(math.prod(shape) for shape in shapes), T, size)
    weights = torch.ones(T, dtype=torch.float64, device=device())
    out = ops.combine(grads, weights)
    seed, step = torch.zeros(2, dtype=torch.int64, device=device())
    leak = torch.zeros(T, dtype=torch.float64, device=device())
    source = torch.ones((reads + both) // 2 // size, dtype=dtype, device=device())
    target = torch.empty_like(source)
    runs: dict[str, tuple[Callable[[], object], int]] = {
        "copy": (lambda: target.copy_(source), reads + both),
        "gram": (lambda: ops.gram(grads, T), reads),
        "combine": (lambda: ops.combine_out(grads, weights, out), both),
        "graddrop": (lambda: ops.graddrop(grads, T, seed, step, leak), both),
        "gram, pcgrad, combine": (ours(T, "pcgrad")(grads), reads + both),
    }
    bandwidth = 0.0
    for name, (run, num_bytes) in runs.items():
        facts = {"case": case, "T": T, "dtype": str(dtype)[6:], "run": name, "bytes": num_bytes}
        seconds = record(records, "row", partial(_given, run), **facts)
        if name == "copy" and seconds:
            bandwidth = num_bytes / seconds
        elif seconds and bandwidth:
            records.add("share", **facts, of_copy=num_bytes / seconds / bandwidth)


@torch.no_grad()
def main() -> None:
    deadline, records = Deadline(__doc__), Records.of_this_stage()
    settings = [("small", 2, "float32")] if is_short() else SETTINGS
    for case, T, dtype in settings:
        if deadline.is_over():
            records.add("left out", case=case, T=T, dtype=dtype)
            continue
        try:
            measure(records, case, T, getattr(torch, dtype))
        except Exception as problem:
            records.add("row", case=case, T=T, dtype=dtype, failed=f"{problem}"[:500])
        synchronize()
        if device() == "cuda":
            torch.cuda.empty_cache()


def _given(run: Callable[[], object]) -> Callable[[], object]:
    return run


if __name__ == "__main__":
    main()
