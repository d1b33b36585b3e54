"""Interleaved wall-clock timing: drift of the machine hits all contestants alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

# A turn is at least this long: a fast contestant repeats itself, so that neither the clock nor what
# the one before it left in the cache decides.
TURN_SECONDS = 2e-3
LEAST_ROUNDS = 7


def interleaved(runs: Mapping[str, Callable[[], object]], budget: float) -> dict[str, list[float]]:
    """Seconds of each run in each round, in about `budget` seconds of rounds; all take turns."""
    repeats = {name: max(1, int(TURN_SECONDS / _once(run))) for name, run in runs.items()}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    start = time.perf_counter()
    while time.perf_counter() - start < budget or len(next(iter(seconds.values()))) < LEAST_ROUNDS:
        for name, run in runs.items():
            begin = time.perf_counter()
            for _ in range(repeats[name]):
                run()
            seconds[name].append((time.perf_counter() - begin) / repeats[name])
    return seconds


def _once(run: Callable[[], object]) -> float:
    """Seconds of one run, warmed up."""
    run()
    run()
    begin = time.perf_counter()
    run()
    return max(time.perf_counter() - begin, 1e-9)


def quartiles(seconds: list[float]) -> tuple[float, float, float]:
    """First quartile, median and third quartile."""
    low, middle, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return low, middle, high
