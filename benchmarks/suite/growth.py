"""How the time grows: with elements, tasks, tensors and threads, one of them at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from benchmarks.suite.direction import COPY, copy_of
from benchmarks.suite.providers import OURS, ours
from benchmarks.suite.results import Row, available_bytes
from benchmarks.suite.timing import Run, rotating, sets_of, timings


@dataclass(frozen=True)
class Point:
    """Where on which axis: T tasks over so many equal tensors that hold N elements together."""

    axis: str
    numel: int = 10_000_000
    tasks: int = 3
    tensors: int = 60
    threads: int = 0


def points(full: bool) -> list[Point]:
    """Those of a quick or a full run; what does not fit the memory says so when its turn comes."""
    largest = 9 if full else 7
    numels = [10**k for k in range(4, largest + 1)]
    tasks = [2, 3, 4, 6, 8, 12, 16, 20, 32, 40, 64] if full else [2, 8, 32]
    tensors = [10**k for k in range(5)] if full else [1, 100, 10_000]
    threads = range(1, (os.cpu_count() or 1) + 1)
    return [
        *(Point("elements", numel=n) for n in numels),
        *(Point("tasks", numel=2_000_000, tasks=T) for T in tasks),
        *(Point("tensors", tensors=P) for P in tensors),
        *(Point("threads", threads=n) for n in threads),
    ]


def scale(
    point: Point, method: str, device: torch.device, budget: float, clock: str = "wall"
) -> list[Row]:
    """Ours and a copy of the same bytes at one point, float32."""
    threads = point.threads or torch.get_num_threads()
    elements = point.numel // point.tensors * point.tensors
    size = 4 * elements
    taken, moved = point.tasks * size, (2 * point.tasks + 1) * size
    blank = Row(
        suite="scaling",
        case=point.axis,
        tasks=point.tasks,
        dtype="float32",
        method=method,
        name=OURS,
        tensors=point.tensors,
        numel=elements,
        threads=threads,
        bytes=moved,
    )
    if 2 * taken + min(moved, 2 << 30) > available_bytes():
        return [replace(blank, told=f"needs {2 * taken / 1e9:.0f} GB")]
    sets = [_equal(point, device) for _ in range(sets_of(taken))]
    prepare = ours(point.tasks, method)
    runs: dict[str, Run] = {
        OURS: rotating([prepare(grads) for grads in sets]),
        COPY: rotating([copy_of(moved, torch.float32, device) for _ in sets]),
    }
    with _threads(threads):
        found = timings(runs, budget, device, "wall" if threads > 1 else clock)
    mine = found[OURS]
    return [
        replace(
            blank,
            seconds=(mine.low, mine.median, mine.high),
            turns=mine.turns,
            how=mine.how,
            copy=found[COPY].median,
        )
    ]


def _equal(point: Point, device: torch.device) -> list[Tensor]:
    each = point.numel // point.tensors
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(each, generator=generator).to(device)
    return [drawn.roll(i) for i in range(point.tasks * point.tensors)]


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
