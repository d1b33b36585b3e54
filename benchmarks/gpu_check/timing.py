"""What the stages that measure share: a deadline, seconds of a run, and a row of the results."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from benchmarks.gpu_check.records import Records, device, is_short
from benchmarks.suite.cuda import cuda_seconds


class Deadline:
    """How much of a stage's time is left; a stage stops by itself before it is stopped."""

    def __init__(self, description: str | None) -> None:
        parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
        parser.add_argument("--seconds", type=float, default=20, help="time of this stage")
        self.end = time.monotonic() + parser.parse_args().seconds

    def is_over(self) -> bool:
        return time.monotonic() > self.end


def seconds_of(run: Callable[[], object], budget: float = 0.1) -> tuple[float, str]:
    """The median seconds of a run, and how they were taken."""
    if device() == "cuda":
        return cuda_seconds(run, budget)
    taken = []
    for _ in range(2 if is_short() else 7):
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken), "clock"


def record(
    records: Records, kind: str, set_up: Callable[[], Callable[[], object]], **facts: object
) -> float | None:
    """Times what set_up gives; a row that fails says why, and the next one follows."""
    try:
        seconds, how = seconds_of(set_up())
    except Exception as problem:  # a peer that is missing, a kernel that fails: this row alone
        records.add(kind, **facts, failed=f"{type(problem).__name__}: {problem}"[:500])
        return None
    records.add(kind, **facts, seconds=seconds, how=how)
    return seconds


def synchronize() -> None:
    if device() == "cuda":
        torch.cuda.synchronize()
