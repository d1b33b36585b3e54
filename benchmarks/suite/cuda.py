"""Timing on a CUDA device by events; runs shorter than 100 us inside a CUDA graph, where it can be.

A launch from Python costs more than a small kernel: a graph of several runs leaves the device's own
time. What cannot be captured is timed as it is called, and says so.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

SHORT = 100e-6
IN_A_GRAPH = 20
ROUNDS = 15


def _between_events(run: Callable[[], object], repeats: int) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(repeats):
        run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) * 1e-3 / repeats


def _captured(run: Callable[[], object]) -> torch.cuda.CUDAGraph:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(IN_A_GRAPH):
            run()
    return graph


def graph_of(run: Callable[[], object]) -> tuple[Callable[[], object], int, str]:
    """What to call to have it run, how many times that runs it, and how that is to be told."""
    try:
        return _captured(run).replay, IN_A_GRAPH, "graph"
    except RuntimeError as problem:  # a peer that reads a tensor back cannot be captured
        torch.cuda.synchronize()
        return run, 1, f"no graph: {str(problem).splitlines()[0][:60]}"


def cuda_seconds(run: Callable[[], object], budget: float) -> tuple[float, str]:
    """The median seconds of a run in about `budget` seconds, and how they were taken."""
    for _ in range(3):
        run()
    torch.cuda.synchronize()
    once = max(_between_events(run, 3), 1e-7)
    how, timed, share = "events", run, 1
    if once < SHORT:
        timed, share, how = graph_of(run)
    repeats = max(1, int(2e-3 / (once * share)))
    seconds: list[float] = []
    end = time.perf_counter() + budget
    while len(seconds) < 3 or (len(seconds) < ROUNDS and time.perf_counter() < end):
        seconds.append(_between_events(timed, repeats) / share)
    return statistics.median(seconds), how
