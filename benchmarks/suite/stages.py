"""The stages of balancing one by one, and the parts of a whole training step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from statistics import quantiles

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.suite.direction import COPY, Setting, copy_of
from benchmarks.suite.memory import observe
from benchmarks.suite.results import Row
from benchmarks.suite.timing import Run, rotating, sets_of, timings
from examples.demo.models import DenseEncoder, MultiTask, dense_head, digit_head, lenet_encoder
from examples.demo.names import gram_method
from examples.demo.problem import Batch, Problem, Task
from examples.demo.timing import time_parts
from mtlkernels import ops
from mtlkernels.aggregation.layout import group_gradients

STAGES = ("canonical lists", "gram", "weights", "combine", "whole")
PARTS = ("forward", "backward", "balancing", "update")
STEPS = 20


def stages(setting: Setting, budget: float) -> list[Row]:
    """Each stage beside a copy of its own bytes; "whole" is gram, weights and combine."""
    T, row = setting.tasks, setting.row_bytes
    moved = {"gram": T * row, "combine": (T + 1) * row, "whole": (2 * T + 1) * row}
    grads = setting.gradients()
    sets = [grads, *([g.clone() for g in grads] for _ in range(sets_of(T * row) - 1))]
    made = [runs_of_stages(g, T, setting.method) for g in sets]
    runs: dict[str, Run] = {name: rotating([m[name] for m in made]) for name in STAGES}
    for name, num_bytes in moved.items():
        copies = [copy_of(num_bytes, setting.dtype, setting.device) for _ in sets]
        runs[f"{COPY} for {name}"] = rotating(copies)
    found = timings(runs, budget, setting.device, setting.clock)
    rows = []
    for name in STAGES:
        timing, watched = found[name], observe(made[0][name], setting.device)
        rows.append(
            replace(
                setting.row("stages", name, moved.get(name, 0)),
                seconds=(timing.low, timing.median, timing.high),
                turns=timing.turns,
                how=timing.how,
                copy=found[f"{COPY} for {name}"].median if name in moved else None,
                peak=watched.peak,
                operators=watched.operators,
                reads=watched.reads,
            )
        )
    return rows


def runs_of_stages(grads: list[Tensor], T: int, method: str) -> dict[str, Callable[[], object]]:
    weigh = gram_method(method)
    count = len(grads) // T
    rows = [grads[t * count : (t + 1) * count] for t in range(T)]
    K = ops.gram(grads, T)
    weights = weigh(K)
    out = ops.combine(grads, weights)
    return {
        "canonical lists": lambda: group_gradients(rows),
        "gram": lambda: ops.gram(grads, T),
        "weights": lambda: weigh(K),
        "combine": lambda: ops.combine_out(grads, weights, out),
        "whole": lambda: ops.combine_out(grads, weigh(ops.gram(grads, T)), out),
    }


def dense_maps(num_tasks: int, device: torch.device) -> Problem:
    """The demo's network for dense maps on random ones: 4 crops of 112 x 112, a map a task."""
    inputs = torch.randn(4, 4, 112, 112, device=device)
    targets = [torch.randn(4, 1, 112, 112, device=device) for _ in range(num_tasks)]
    return _problem(
        "dense maps",
        lambda: MultiTask(DenseEncoder(4), {f"task{t}": dense_head(1) for t in range(num_tasks)}),
        inputs,
        targets,
        functional.l1_loss,
    )


def digits(num_tasks: int, device: torch.device) -> Problem:
    """The demo's LeNet on random images: 128 of 28 x 28."""
    inputs = torch.randn(128, 1, 28, 28, device=device)
    targets = [torch.randint(10, (128,), device=device) for _ in range(num_tasks)]
    return _problem(
        "digits",
        lambda: MultiTask(lenet_encoder(), {f"task{t}": digit_head() for t in range(num_tasks)}),
        inputs,
        targets,
        functional.cross_entropy,
    )


def _problem(
    name: str,
    build: Callable[[], MultiTask],
    inputs: Tensor,
    targets: list[Tensor],
    loss: Callable[[Tensor, Tensor], Tensor],
) -> Problem:
    tasks = tuple(
        Task(
            f"task{t}",
            loss,
            lambda have, want: float(loss(have, want)),
            "loss",
            "",
            higher_is_better=False,
        )
        for t in range(len(targets))
    )
    batch = Batch(inputs, {task.name: target for task, target in zip(tasks, targets, strict=True)})
    return Problem(name, "random inputs and targets", tasks, build, lambda _: batch, batch, 1, 1e-3)


MODELS = {"dense maps": dense_maps, "digits": digits}


def step(model: str, num_tasks: int, method: str, device: torch.device) -> list[Row]:
    """The parts of a step of AdamW: forward, T backwards, balancing, update."""
    torch.manual_seed(0)
    problem = MODELS[model](num_tasks, device)
    network = problem.build().to(device)
    parts = time_parts(problem, network, gram_method(method).to(device), STEPS)
    shared = list(network.encoder.parameters())
    rows = []
    for name, seconds in zip(PARTS, parts, strict=True):
        low, median, high = quantiles(seconds, n=4, method="inclusive")
        rows.append(
            Row(
                suite="step",
                case=model,
                tasks=num_tasks,
                dtype="float32",
                method=method,
                name=name,
                tensors=len(shared),
                numel=sum(param.numel() for param in shared),
                threads=torch.get_num_threads(),
                seconds=(low, median, high),
                turns=len(seconds),
                how="wall",
            )
        )
    return rows
