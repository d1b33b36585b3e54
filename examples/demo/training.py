"""One run: the same start and the same batches for every method and every baseline."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

import mtlkernels
from examples.demo.models import MultiTask
from examples.demo.names import gram_method
from examples.demo.problem import Batch, Problem, Task
from examples.demo.timing import Split, time_split
from mtlkernels.extras import require

START_SEED = 0
BATCH_SEED = 1
RECORDS = 30


@dataclass(frozen=True)
class Run:
    """What a multi-task run leaves: final metrics by task, the time split, a record of S steps.

    On the CPU: losses, norms and weights (S, T), cosines (S, T, T), conflicts (S) in [0, 1].
    """

    method: str
    metrics: dict[str, float]
    split: Split
    losses: Tensor
    norms: Tensor
    weights: Tensor
    cosines: Tensor
    conflicts: Tensor

    @property
    def norm_ratio(self) -> float:
        """Largest over smallest gradient norm of the tasks, median over the steps."""
        return (self.norms.amax(dim=1) / self.norms.amin(dim=1)).nanmedian().item()

    @property
    def conflict_rate(self) -> float:
        """Share of task pairs whose gradients have a negative cosine, mean over the steps."""
        return self.conflicts.double().mean().item()


def train(
    problem: Problem, name: str, steps: int, device: torch.device, log: Path | None = None
) -> Run:
    """Train all tasks together for `steps` steps under the method called `name`.

    A log gets means over a thirtieth of the run at a time, of the encoder's layers too.
    """
    model, generator = _start(problem, device)
    method = gram_method(name).to(device)
    layers = mtlkernels.named_parts(model.encoder)
    optimizer = mtlkernels.MTLOptimizer(_adamw(model, problem), method, parts=list(layers.values()))
    sinks = [] if log is None else [mtlkernels.JSONL(log)]
    monitor = mtlkernels.Monitor(*sinks, every=max(1, steps // RECORDS), parts=layers)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    reports = []
    for _ in _progress(steps, f"{problem.name} {name}"):
        batch = problem.sample(generator)
        predictions = model(batch.inputs)
        losses = {t.name: t.loss(predictions[t.name], batch.targets[t.name]) for t in problem.tasks}
        optimizer.zero_grad()
        reports.append(optimizer.backward(losses))
        monitor(reports[-1])
        optimizer.step()
        schedule.step()
    monitor.flush()
    return Run(
        method=name,
        metrics=evaluate(model, problem.tasks, problem.test),
        split=time_split(problem, model, method),
        losses=torch.stack([r.losses for r in reports if r.losses is not None]).cpu(),
        norms=torch.stack([report.norms() for report in reports]).cpu(),
        weights=torch.stack([r.weights[0] for r in reports if r.weights is not None]).cpu(),
        cosines=torch.stack([report.cosines() for report in reports]).cpu(),
        conflicts=torch.stack([report.conflict_rate() for report in reports]).cpu(),
    )


def train_single(problem: Problem, task: Task, steps: int, device: torch.device) -> float:
    """The metric of `task` trained alone: same encoder, one head, same start and batches."""
    model, generator = _start(problem, device)
    model.heads = nn.ModuleDict({task.name: model.heads[task.name]})
    optimizer = _adamw(model, problem)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    for _ in _progress(steps, f"{problem.name} {task.name} alone"):
        batch = problem.sample(generator)
        optimizer.zero_grad()
        loss = task.loss(model(batch.inputs)[task.name], batch.targets[task.name])
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
    return evaluate(model, (task,), problem.test)[task.name]


@torch.no_grad()
def evaluate(model: MultiTask, tasks: tuple[Task, ...], test: Batch) -> dict[str, float]:
    """Each task's metric on the held-out data, by task name."""
    predictions = model(test.inputs)
    return {
        task.name: task.measure(predictions[task.name], test.targets[task.name]) for task in tasks
    }


def _start(problem: Problem, device: torch.device) -> tuple[MultiTask, torch.Generator]:
    """The model and the source of batches that every run of a problem starts from."""
    torch.manual_seed(START_SEED)
    return problem.build().to(device), torch.Generator().manual_seed(BATCH_SEED)


def _adamw(model: MultiTask, problem: Problem) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=problem.rate)


def _progress(steps: int, title: str) -> Iterable[int]:
    """`range(steps)` behind a progress bar on stderr."""
    bar: Iterable[int] = require("tqdm").tqdm(range(steps), desc=f"{title:<24}", unit="step")
    return bar
