"""The field's kinds of tasks: how many channels to predict, the loss, and the meter.

Losses are those of the published NYUv2 runs, over known pixels; each is a scalar on the device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from examples.demo.metrics import absolute_error, cosine_error, known_mean
from studies.imbalance.data.common import IGNORE
from studies.imbalance.metrics import (
    BinaryMeter,
    DepthMeter,
    Meter,
    NormalsMeter,
    SegmentationMeter,
)


@dataclass(frozen=True)
class Task:
    """One task of a data set, whose targets go by `name`.

    A model predicts `channels` numbers, a pixel if `dense`, (B, channels, H, W), else a sample,
    (B, channels). `loss(prediction, target)` is a scalar tensor; `meter()` starts a new meter.
    """

    name: str
    channels: int
    dense: bool
    loss: Callable[[Tensor, Tensor], Tensor]
    meter: Callable[[], Meter]


def segmentation(name: str, classes: int) -> Task:
    """Cross-entropy over the pixels that have a class; mIoU and pixel accuracy over the set."""
    return Task(name, classes, True, class_error, lambda: SegmentationMeter(classes))


def depth(name: str) -> Task:
    """Mean absolute error; absolute and relative error over the set's pixels."""
    return Task(name, 1, True, absolute_error, DepthMeter)


def normals(name: str) -> Task:
    """One minus the cosine of the angle; angles over the set's pixels."""
    return Task(name, 3, True, cosine_error, NormalsMeter)


def regression(name: str, channels: int) -> Task:
    """Mean absolute error over known numbers of a dense map, as loss and as the one metric."""
    return Task(name, channels, True, absolute_error, ErrorMeter)


def binary(name: str, dense: bool, positive_weight: float = 0.5) -> Task:
    """Binary cross-entropy, of pixels or of samples; error and F1 over the set, F1 first of pixels.

    Ones count `positive_weight` and zeros the rest of 1, times 2, so 0.5 is the plain loss. Edges
    are trained with 0.95 in the ASTMT and MTI-Net code.
    """
    if not 0 < positive_weight < 1:
        raise ValueError(f"positive_weight lies between 0 and 1, not at {positive_weight}")

    def loss(prediction: Tensor, target: Tensor) -> Tensor:
        return binary_error(prediction, target, positive_weight)

    return Task(name, 1, dense, loss, lambda: BinaryMeter("f1" if dense else "error"))


def class_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean cross-entropy of logits (B, C, H, W) against classes (B, H, W), zero if all are -1."""
    error = functional.cross_entropy(prediction, target, ignore_index=IGNORE, reduction="none")
    return known_mean(error, target != IGNORE)


def binary_error(prediction: Tensor, target: Tensor, positive_weight: float = 0.5) -> Tensor:
    """Mean weighted cross-entropy of logits against as many targets 0 or 1, over known ones."""
    target = target.reshape(prediction.shape)
    truth = target.nan_to_num()
    error = functional.binary_cross_entropy_with_logits(prediction, truth, reduction="none")
    weight = torch.where(truth > 0.5, 2 * positive_weight, 2 * (1 - positive_weight))
    return known_mean(error * weight, target.isfinite())


class ErrorMeter(DepthMeter):
    """`absolute` alone: a relative error says nothing of numbers around zero."""

    def result(self) -> dict[str, float]:
        return {"absolute": super().result()["absolute"]}
