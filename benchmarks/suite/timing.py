"""Interleaved timing: contestants take turns, so that drift of the machine hits all alike."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from benchmarks.suite.cuda import SHORT, graph_of

Run = Callable[[], object]

# The second counts the time that the calling thread had a processor: it leaves out what the other
# work of a machine took, and would leave out what other threads do.
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.thread_time}

# A turn is at least this long: a fast contestant repeats itself, so that neither the clock nor what
# the one before it left in the cache decides.
TURN_SECONDS = 2e-3
LEAST_ROUNDS = 7
# One that takes longer than this share of the budget sits rounds out; it still has LEAST_TURNS.
SLOW_SHARE = 0.04
LEAST_TURNS = 3
# Gradients rotate among so many bytes, twice the last cache of most machines, or so many sets.
ROTATED_BYTES = 64 << 20
MOST_SETS = 512


@dataclass(frozen=True)
class Timing:
    """Seconds of one run: quartiles over the turns, their number, and how they were taken."""

    low: float
    median: float
    high: float
    turns: int
    how: str


def sets_of(num_bytes: int) -> int:
    """Among how many sets of gradients of that size to rotate, so that no cache holds them all."""
    return max(1, min(MOST_SETS, -(-ROTATED_BYTES // max(num_bytes, 1))))


def rotating(runs: Sequence[Run]) -> Run:
    """Each call runs the next of them, over and over."""
    if len(runs) == 1:
        return runs[0]
    endless = itertools.cycle(runs)
    return lambda: next(endless)()


def interleaved(
    runs: Mapping[str, Run],
    budget: float,
    device: torch.device | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each run in each of its turns, in about `budget` seconds; all take turns.

    The device is waited for inside what is timed.
    """
    kind = device.type if device is not None else "cpu"
    once = {name: _once(run, kind) for name, run in runs.items()}
    repeats = {name: max(1, int(TURN_SECONDS / seconds)) for name, seconds in once.items()}
    every = {name: max(1, int(s / (SLOW_SHARE * max(budget, 1e-9)))) for name, s in once.items()}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    turn, start = 0, time.perf_counter()
    while True:
        late = time.perf_counter() - start >= budget
        enough = {name: LEAST_ROUNDS if every[name] == 1 else LEAST_TURNS for name in runs}
        if late and all(len(seconds[name]) >= enough[name] for name in runs):
            return seconds
        for name, run in runs.items():
            if late and len(seconds[name]) >= enough[name]:
                continue
            if late or turn % every[name] == 0:
                seconds[name].append(_timed(run, repeats[name], kind, clock))
        turn += 1


def timings(
    runs: Mapping[str, Run], budget: float, device: torch.device, clock: str = "wall"
) -> dict[str, Timing]:
    """What each run takes. On a CUDA device short runs are timed inside a CUDA graph."""
    how = dict.fromkeys(runs, clock)
    share = dict.fromkeys(runs, 1)
    timed = dict(runs)
    if device.type == "cuda":
        for name, run in runs.items():
            if _once(run, "cuda") < SHORT:
                timed[name], share[name], how[name] = graph_of(run)
    found = interleaved(timed, budget, device, CLOCKS[clock])
    taken = {}
    for name, seconds in found.items():
        low, median, high = (q / share[name] for q in quartiles(seconds))
        taken[name] = Timing(low, median, high, len(seconds), how[name])
    return taken


def _timed(run: Run, repeats: int, kind: str, clock: Callable[[], float]) -> float:
    wait(kind)
    begin = clock()
    for _ in range(repeats):
        run()
    wait(kind)
    return (clock() - begin) / repeats


def wait(kind: str) -> None:
    """Until a device of that kind is done."""
    if kind != "cpu":
        torch.accelerator.synchronize()


def _once(run: Run, kind: str) -> float:
    """Seconds of one run, warmed up."""
    run()
    if (first := _timed(run, 1, kind, time.perf_counter)) > 1:
        return first
    return max(_timed(run, 1, kind, time.perf_counter), 1e-9)


def quartiles(seconds: list[float]) -> tuple[float, float, float]:
    """First quartile, median and third quartile."""
    low, middle, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return low, middle, high
