"""One run: from the same start and on the same batches as the other methods of its seed.

Nothing but the spec decides the numbers, and a checkpoint holds everything that a step changes:
model, optimizer, method, schedule, the draws of batches, torch's own generator and what was noted.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import mtlkernels
from examples.demo.models import MultiTask
from examples.demo.problem import Batch, Task
from studies.imbalance.config import PRETRAINED
from studies.imbalance.problems import DATA, build_model, last_shared
from studies.imbalance.recipes import RECIPES, UW_RATE
from studies.imbalance.specs import GRID, METHOD, PRETRAIN, Spec, pretrain_of
from studies.imbalance.storage import Folder
from studies.imbalance.watching import Watch

BATCH_SEEDS = 1_000_000
"""What is added to a run's seed for its batches, so that they are not drawn as the weights are."""


class Training:
    """A run between two steps."""

    def __init__(self, spec: Spec, encoder: dict[str, Any] | None = None) -> None:
        data = DATA[spec.part.data]()
        self.spec, self.data = spec, data
        self.tasks = [task for task in data.tasks if spec.task in (None, task.name)]
        torch.manual_seed(spec.seed)
        self.model = build_model(spec.part.data, spec.part.encoder)
        self.model.heads = nn.ModuleDict({t.name: self.model.heads[t.name] for t in self.tasks})
        if encoder is not None:
            self.model.encoder.load_state_dict(encoder)
        self.batches = torch.Generator().manual_seed(BATCH_SEEDS + spec.seed)
        self.optimizer = self._optimizer()
        steps = spec.part.steps
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, T_max=steps)
        self.watch = self._watch() if spec.kind in (METHOD, GRID) else None
        self.done = 0
        self.seconds = 0.0

    def step(self) -> None:
        """One step; looking at the gradients does not count in the seconds."""
        batch = self.data.draw(self.spec.halves, self.spec.part.batch, self.batches)
        start = time.perf_counter()
        losses = self._losses(batch)
        self.seconds += time.perf_counter() - start
        if self.watch is not None and self.done % self.spec.watch_every == 0:
            self.watch.look(list(losses.values()), list(self.model.encoder.parameters()))
        start = time.perf_counter()
        self.optimizer.zero_grad()
        self._backward(losses)
        self.optimizer.step()
        self.schedule.step()
        self._after(batch)
        self.seconds += time.perf_counter() - start
        self.done += 1

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {
            "done": self.done,
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "batches": self.batches.get_state(),
            "torch": torch.get_rng_state(),
            "watch": None if self.watch is None else self.watch.state(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Goes on where that state was taken."""
        self.done, self.seconds = state["done"], state["seconds"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.batches.set_state(state["batches"])
        torch.set_rng_state(state["torch"])
        if self.watch is not None:
            self.watch.load(state["watch"])

    def result(self, jobs: int) -> dict[str, Any]:
        """What the run leaves as JSON; `cost` alone differs from one time to the next, and says
        how many runs went on at a time.
        """
        return {
            "tasks": [
                {
                    "name": task.name,
                    "metric": task.metric,
                    "unit": task.unit,
                    "higher_is_better": task.higher_is_better,
                }
                for task in self.tasks
            ],
            "caption": self.data.caption,
            "validation": evaluate(self.model, self.tasks, self.data.validation),
            "test": evaluate(self.model, self.tasks, self.data.test),
            "watched": None if self.watch is None else self.watch.result(),
            "cost": {
                "steps": self.done,
                "seconds": self.seconds,
                "jobs": jobs,
                "threads": torch.get_num_threads(),
                "torch": torch.__version__,
            },
        }

    @property
    def _last(self) -> list[nn.Parameter]:
        return last_shared(self.spec.part.data, self.spec.part.encoder, self.model)

    def _watch(self) -> Watch:
        last = {id(param) for param in self._last}
        return Watch(len(self.tasks), [id(p) in last for p in self.model.encoder.parameters()])

    def _optimizer(self) -> torch.optim.Optimizer:
        base = torch.optim.AdamW(self.model.parameters(), lr=self.spec.part.rate)
        if self.spec.kind != METHOD or self.spec.label not in RECIPES:
            return base
        recipe = RECIPES[self.spec.label]
        method = recipe.make(len(self.tasks), self.spec.seed)
        if learnt := list(method.parameters()):
            base.add_param_group({"params": learnt, "lr": UW_RATE, "weight_decay": 0.0})
        return mtlkernels.MTLOptimizer(base, method, **recipe.options(self._last))

    def _losses(self, batch: Batch) -> dict[str, Tensor]:
        predictions = self.model(batch.inputs)
        return {
            task.name: task.loss(predictions[task.name], batch.targets[task.name])
            for task in self.tasks
        }

    def _backward(self, losses: dict[str, Tensor]) -> None:
        if isinstance(self.optimizer, mtlkernels.MTLOptimizer):
            self.optimizer.backward(losses)
            return
        weights = self.spec.weights or [1.0] * len(losses)
        terms = [w * loss for w, loss in zip(weights, losses.values(), strict=True)]
        torch.autograd.backward(torch.stack(terms).sum())

    def _after(self, batch: Batch) -> None:
        """FAMO learns from what the step did to the losses of its batch."""
        method = getattr(self.optimizer, "method", None)
        if isinstance(method, mtlkernels.FAMO):
            with torch.no_grad():
                method.update(torch.stack(list(self._losses(batch).values())))


@torch.no_grad()
def evaluate(model: MultiTask, tasks: list[Task], batch: Batch) -> dict[str, dict[str, float]]:
    """Each task's loss and metric on held-out data, by the task's name."""
    predictions = model(batch.inputs)
    return {
        task.name: {
            "loss": task.loss(predictions[task.name], batch.targets[task.name]).item(),
            "metric": task.measure(predictions[task.name], batch.targets[task.name]),
        }
        for task in tasks
    }


def execute(
    spec: Spec,
    folder: Folder,
    checkpoint_every: int,
    told: Callable[[int], object],
    jobs: int = 1,
) -> None:
    """Runs to the end, from the last checkpoint where there is one, and writes the result.

    `told(steps)` hears how many steps have been done since it was last called; `jobs` is how many
    runs go on at a time.
    """
    training = Training(spec, _start(spec, folder))
    if (state := folder.load(spec, "checkpoint")) is not None:
        training.load(state)
        told(training.done)
    while training.done < spec.part.steps:
        training.step()
        told(1)
        if training.done % checkpoint_every == 0 and training.done < spec.part.steps:
            folder.save(spec, "checkpoint", training.state())
    if spec.kind == PRETRAIN:
        folder.save(spec, "encoder", training.model.encoder.state_dict())
    folder.finish(spec, training.result(jobs))


def _start(spec: Spec, folder: Folder) -> dict[str, Any] | None:
    """The encoder that the run starts from, if it is a pre-trained one."""
    if spec.setting != PRETRAINED or spec.kind == PRETRAIN:
        return None
    encoder = folder.load(pretrain_of(spec), "encoder")
    if encoder is None:
        raise RuntimeError(f"the encoder that {spec.name} starts from has not been trained yet")
    return encoder
