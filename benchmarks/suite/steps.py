"""Whole steps, from the batch to .grad: a plain one, loops people write, ours and torchjd's.

Each choice has a model of its own with the same numbers in it. All take turns, first on the wall
clock and then on that of the calling thread, which leaves out what else a busy machine did. Memory
is the most that torch allocated during a step beyond parameters and batch, from a pass that is not
timed: activations, gradients and .grad. "from ours" is how far the gradient of the shared
parameters is from the one of `ours` on the same batch, relative to it; of a method that draws at
random it says nothing. torchjd's backward and autogram weigh the heads as well.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from benchmarks.choices import CHOICES, CYCLES, GRADIENTS, PLAIN, ROWS
from benchmarks.models import MODELS, Workload
from benchmarks.suite.memory import peak_bytes
from benchmarks.suite.results import Row
from benchmarks.suite.timing import CLOCKS, interleaved, quartiles


@dataclass(frozen=True)
class Work:
    """What takes a step: a model of `benchmarks.models`, T tasks, a Gram method and a device."""

    model: str
    tasks: int
    method: str
    device: torch.device


def steps(what: Work, names: Sequence[str], budget: float) -> list[Row]:
    """A row for each choice, the plain step first; one that fails says why.

    Args:
        what: the model and how its losses are weighed.
        names: of `CHOICES`.
        budget: seconds for all turns, shared by the two clocks.
    """
    runs, rows, directions = _set_up(what, names, "steps")
    wall = interleaved(runs, budget / 2, what.device)
    # The time of one thread; torch's others would not be in it.
    one = what.device.type == "cpu" and torch.get_num_threads() == 1
    thread = interleaved(runs, budget / 2, what.device, CLOCKS["cpu"]) if one else {}
    for name, seconds in wall.items():
        cycle = CYCLES.get(name, 1)
        low, median, high = (quartile / cycle for quartile in quartiles(seconds))
        rows[name] = replace(
            rows[name],
            seconds=(low, median, high),
            turns=len(seconds),
            how="wall",
            thread=quartiles(thread[name])[1] / cycle if one else None,
            error=_distance(directions.get(name), directions.get(ROWS)),
        )
    return list(rows.values())


def memory(what: Work, names: Sequence[str]) -> list[Row]:
    """`steps` that measures memory and takes no time, so that it does not matter what else runs."""
    _, rows, _ = _set_up(what, names, "memory")
    return list(rows.values())


def _set_up(
    what: Work, names: Sequence[str], suite: str
) -> tuple[dict[str, Callable[[], str]], dict[str, Row], dict[str, Tensor]]:
    """By name: what to time, a row with the memory of a step, and the direction of one."""
    torch.manual_seed(0)
    work = MODELS[what.model](what.tasks).to(what.device)
    runs: dict[str, Callable[[], str]] = {}
    rows: dict[str, Row] = {}
    directions: dict[str, Tensor] = {}
    blank = Row(
        *(suite, what.model, what.tasks, "float32", what.method, ""),
        tensors=len(work.shared),
        numel=sum(param.numel() for param in work.shared),
        threads=torch.get_num_threads(),
    )
    for name in dict.fromkeys([PLAIN, *names]):
        own = copy.deepcopy(work)
        try:
            torch.manual_seed(0)
            run = _fresh(own, CHOICES[name](own, what.method), what.device)
            run()
            own.model.zero_grad(set_to_none=True)  # memory that the pass would see freed
            peak = peak_bytes(run, what.device)
            told = run()
        except Exception as problem:
            reason = f"{type(problem).__name__}: {problem}".splitlines()[0][:120]
            rows[name] = replace(blank, name=name, told=reason)
            continue
        runs[name] = run
        rows[name] = replace(blank, name=name, peak=peak, told=told)
        if name not in (PLAIN, GRADIENTS):
            directions[name] = _direction(own)
    return runs, rows, directions


def _fresh(work: Workload, run: Callable[[], str], device: torch.device) -> Callable[[], str]:
    """The step from .grad = None to the device being done."""

    def step() -> str:
        work.model.zero_grad(set_to_none=True)
        told = run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return told

    return step


def _direction(work: Workload) -> Tensor:
    return torch.cat([param.grad.flatten() for param in work.shared if param.grad is not None])


def _distance(have: Tensor | None, want: Tensor | None) -> float | None:
    if have is None or want is None or have is want:
        return None
    return float((have - want).norm() / want.norm())
