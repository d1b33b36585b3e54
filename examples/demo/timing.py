"""Where the time of a step goes: forward, backward, balancing, update."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

import torch

from examples.demo.models import MultiTask
from examples.demo.problem import Problem
from mtlkernels.autograd.task_gradients import Rows, collect_rows
from mtlkernels.engine.gradient_step import combine_rows
from mtlkernels.engine.options import Options
from mtlkernels.methods import GramMethod

WARMUP = 2
REPEATS = 10


@dataclass(frozen=True)
class Split:
    """Milliseconds a step.

    `forward` reaches the losses, `backward` is one backward a task, `balancing` everything from
    those gradients to `.grad` (Gram matrix, weights, combination), `update` the base optimizer's
    step.
    """

    forward: float
    backward: float
    balancing: float
    update: float

    @property
    def total(self) -> float:
        return self.forward + self.backward + self.balancing + self.update


def time_split(problem: Problem, model: MultiTask, method: GramMethod) -> Split:
    """Medians over ten extra steps on copies, so that the run they follow stays as it was."""
    parts = time_parts(problem, model, method, REPEATS)
    return Split(*(1e3 * median(part) for part in parts))


def time_parts(
    problem: Problem, model: MultiTask, method: GramMethod, steps: int
) -> list[tuple[float, ...]]:
    """Seconds of forward, backward, balancing and update in each of so many steps on copies.

    The device is waited for after each part, so the parts add up to more than a free-running step.
    """
    model, method = copy.deepcopy(model), copy.deepcopy(method)
    optimizer = torch.optim.AdamW(model.parameters(), lr=problem.rate)
    params = [*model.encoder.parameters(), *model.heads.parameters()]
    generator = torch.Generator().manual_seed(0)
    rows = []
    for _ in range(WARMUP + steps):
        batch = problem.sample(generator)
        optimizer.zero_grad()
        marks = [_now(batch.inputs.device)]
        predictions = model(batch.inputs)
        losses = [t.loss(predictions[t.name], batch.targets[t.name]) for t in problem.tasks]
        marks.append(_now(batch.inputs.device))
        gradients, told = collect_rows(losses, params, "loop")
        marks.append(_now(batch.inputs.device))
        names = tuple(task.name for task in problem.tasks)
        values = torch.stack(losses).detach()
        collected = Rows(names, values, params, gradients, None, told)
        combine_rows(collected, method, Options())
        marks.append(_now(batch.inputs.device))
        optimizer.step()
        marks.append(_now(batch.inputs.device))
        rows.append([end - start for start, end in pairwise(marks)])
    return list(zip(*rows[WARMUP:], strict=True))


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
