"""What a data set hands to the demo's trainer: batches, tasks, and a model to start from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from examples.demo.models import MultiTask


@dataclass(frozen=True)
class Task:
    """One task: the loss it trains on and the one metric it is judged by.

    `loss(prediction, target)` gives a scalar tensor, `measure(prediction, target)` a float in
    `unit`.
    """

    name: str
    loss: Callable[[Tensor, Tensor], Tensor]
    measure: Callable[[Tensor, Tensor], float]
    metric: str
    unit: str
    higher_is_better: bool


@dataclass(frozen=True)
class Batch:
    """Inputs (B, C, H, W) and one target tensor a task, all on one device."""

    inputs: Tensor
    targets: dict[str, Tensor]


@dataclass(frozen=True)
class Problem:
    """A data set with its tasks.

    `sample(generator)` draws a training batch from a CPU generator, so equal seeds give equal
    batches on every device. `build()` gives a model on the CPU from torch's default generator.
    `steps` is the default length of a run, `rate` the peak learning rate of AdamW.
    """

    name: str
    caption: str
    tasks: tuple[Task, ...]
    build: Callable[[], MultiTask]
    sample: Callable[[torch.Generator], Batch]
    test: Batch
    steps: int
    rate: float
