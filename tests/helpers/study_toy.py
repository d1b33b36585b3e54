"""A study of two tasks on made-up numbers, small enough to be run whole in a test.

As a program, `python study_toy.py FOLDER [JOBS]`, it runs the study and can be killed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from examples.demo.problem import Batch, Task
from studies.imbalance import problems
from studies.imbalance.config import Config, Part
from studies.imbalance.recipes import RECIPES
from studies.imbalance.runner import run_study
from studies.imbalance.storage import Folder

TASKS = tuple(
    Task(
        name=name,
        loss=functional.mse_loss,
        measure=lambda prediction, target: functional.mse_loss(prediction, target).item(),
        metric="squared error",
        unit="",
        higher_is_better=False,
    )
    for name in ("small", "large")
)
STUDY = Config(
    seeds=(0, 1),
    parts=(
        Part(
            data="toy",
            encoder="mlp",
            steps=24,
            batch=8,
            rate=1e-2,
            methods=("equal", "grid", "avgnorm-sum-last", "pcgrad", "uw", "famo", "dbmtl"),
            levels=(1.0, 8.0),
            settings=("half", "pretrained"),
            setting_methods=("equal", "grid", "avgnorm-sum-last"),
        ),
    ),
    watch_every=3,
    checkpoint_every=5,
)
EVERYTHING = replace(STUDY.parts[0], methods=("equal", "grid", *RECIPES))


@cache
def toy_data() -> problems.Data:
    """Two regressions on one table whose losses differ in scale by a hundred."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(96, 4, generator=generator)
    mixed = features @ torch.randn(4, 2, generator=generator)
    targets = {"small": mixed[:, :1].tanh(), "large": 10 * mixed[:, 1:].sin()}
    train, validation, test = (
        Batch(features[rows], {name: target[rows] for name, target in targets.items()})
        for rows in (slice(0, 48), slice(48, 72), slice(72, 96))
    )
    pools = {"a": slice(0, 24), "b": slice(24, 48), "ab": slice(0, 48)}

    def draw(halves: problems.Halves, batch: int, generator: torch.Generator) -> Batch:
        chosen = torch.arange(48)[pools[halves]]
        rows = chosen[torch.randint(len(chosen), (batch,), generator=generator)]
        return Batch(
            train.inputs[rows], {name: target[rows] for name, target in train.targets.items()}
        )

    return problems.Data("toy: made-up numbers", TASKS, draw, validation, test)


@contextmanager
def registered() -> Iterator[None]:
    """The toy is among the study's data, and torch on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    register()
    yield
    del problems.DATA["toy"]
    del problems.ENCODERS["toy", "mlp"]
    torch.set_num_threads(threads)


def register() -> None:
    """Adds the toy to the study's data."""
    problems.DATA["toy"] = toy_data
    problems.ENCODERS["toy", "mlp"] = problems.Encoder(
        build=lambda: nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 8), nn.Tanh()),
        head=lambda task: nn.Linear(8, 1),
        last=lambda encoder: encoder.get_submodule("2"),
    )


if __name__ in ("__main__", "__mp_main__"):
    register()
if __name__ == "__main__":
    print("started", flush=True)
    run_study(STUDY, Folder(Path(sys.argv[1])), *map(int, sys.argv[2:]))
