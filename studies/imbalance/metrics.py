"""The field's metrics, summed up over a set batch by batch, each variant by its name.

A meter takes predictions and targets of one task, `update(prediction, target)`, as often as wanted
and gives `result()`, a dict of floats. Targets are marked as in `studies.imbalance.data`: -1 for a
pixel without a class, NaN for an unknown number. Published numbers differ in what is averaged
first:

* over="set": all known pixels of the set count equally (LibMTL; mIoU in Nash-MTL, CAGrad, FAMO);
* over="image": a number an image, then the mean over images (MTAN: mIoU, pixel accuracy);
* over="batch": a number a batch, then the mean over batches (MTAN, Nash-MTL: depth, normals), which
  depends on the batch size.

Images and batches without a known pixel are left out of their means. A meter that has seen no known
pixel gives NaN.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from examples.demo.metrics import delta_m

HIGHER_IS_BETTER = {
    "miou": True,
    "pixel_accuracy": True,
    "absolute": False,
    "relative": False,
    "mean_angle": False,
    "median_angle": False,
    "within_11.25": True,
    "within_22.5": True,
    "within_30": True,
    "error": False,
    "precision": True,
    "recall": True,
    "f1": True,
}
"""Every metric of a meter: whether a larger number is the better one."""

ANGLES = (11.25, 22.5, 30.0)

Results = Mapping[str, Mapping[str, float]]


class Meter(Protocol):
    """What sums up one task's predictions over a set."""

    def update(self, prediction: Tensor, target: Tensor) -> None: ...

    def result(self) -> dict[str, float]: ...


class SegmentationMeter:
    """`miou` and `pixel_accuracy` in [0, 1] of logits (B, C, H, W) against classes (B, H, W).

    The IoU of a class is what prediction and target share over what either has; classes that
    neither has, in the set or the image, are left out of the mean. Raises ValueError where there
    are more logits than classes.
    """

    def __init__(self, classes: int, over: Literal["set", "image"] = "set") -> None:
        self.classes = classes
        self.over = _one_of(over, ("set", "image"))
        self.confusions: list[Tensor] = []

    def update(self, prediction: Tensor, target: Tensor) -> None:
        if prediction.shape[1] > self.classes:
            raise ValueError(
                f"{prediction.shape[1]} logits a pixel are more than the meter's {self.classes} "
                "classes: build it with as many"
            )
        confusion = self._confusion(prediction.argmax(dim=1), target)
        if self.over == "image":
            self.confusions.append(confusion)
        elif self.confusions:
            self.confusions[0] += confusion.sum(dim=0, keepdim=True)
        else:
            self.confusions.append(confusion.sum(dim=0, keepdim=True))

    def result(self) -> dict[str, float]:
        if not self.confusions:
            return {"miou": math.nan, "pixel_accuracy": math.nan}
        confusion = torch.cat(self.confusions).double()
        right = confusion.diagonal(dim1=1, dim2=2)
        either = confusion.sum(dim=1) + confusion.sum(dim=2) - right
        pixels = confusion.sum(dim=(1, 2))
        iou = (right / either).nanmean(dim=1)
        return {
            "miou": iou[pixels > 0].mean().item(),
            "pixel_accuracy": (right.sum(dim=1) / pixels)[pixels > 0].mean().item(),
        }

    def _confusion(self, found: Tensor, target: Tensor) -> Tensor:
        """Pixels of each image by true and found class, (B, C, C) int64."""
        image = torch.arange(len(target), device=target.device)[:, None, None]
        known = target >= 0
        place = (image * self.classes + target) * self.classes + found
        counts = place[known].bincount(minlength=len(target) * self.classes**2)
        return counts.reshape(len(target), self.classes, self.classes)


class DepthMeter:
    """`absolute`, mean |p - g|, and `relative`, mean |p - g| / g, of maps (B, 1, H, W)."""

    def __init__(self, over: Literal["set", "batch"] = "set") -> None:
        self.over = _one_of(over, ("set", "batch"))
        self.sums: list[Tensor] = []

    def update(self, prediction: Tensor, target: Tensor) -> None:
        known = target.isfinite()
        truth = target[known].double()
        error = (prediction[known].double() - truth).abs()
        count = torch.tensor(float(len(error)), dtype=torch.float64, device=error.device)
        self.sums.append(torch.stack((error.sum(), (error / truth).sum(), count)))

    def result(self) -> dict[str, float]:
        absolute, relative = _means(self.sums, self.over)
        return {"absolute": absolute, "relative": relative}


class NormalsMeter:
    """Angles in degrees between vectors (B, 3, H, W) of any length: their mean and median, and the
    share within 11.25, 22.5 and 30.

    Published code differs in that some expects predictions of unit length; those are unchanged
    here. The median of an even number is the mean of the middle two, of all angles of the set,
    which are kept in float32 on the CPU, or of each batch.
    """

    def __init__(self, over: Literal["set", "batch"] = "set") -> None:
        self.over = _one_of(over, ("set", "batch"))
        self.angles: list[Tensor] = []

    def update(self, prediction: Tensor, target: Tensor) -> None:
        known = target.isfinite().all(dim=1)
        found = functional.normalize(prediction.double(), dim=1).movedim(1, -1)[known]
        truth = functional.normalize(target.double(), dim=1).movedim(1, -1)[known]
        # Of near and of opposite vectors the sine of half the angle keeps the digits of acos.
        angle = 2 * torch.atan2((found - truth).norm(dim=-1), (found + truth).norm(dim=-1))
        self.angles.append(angle.rad2deg().float().cpu())

    def result(self) -> dict[str, float]:
        groups = (
            self.angles if self.over == "batch" else [torch.cat([torch.empty(0), *self.angles])]
        )
        rows = [_angle_numbers(angles) for angles in groups if len(angles)]
        names = ("mean_angle", "median_angle", *(f"within_{limit:g}" for limit in ANGLES))
        if not rows:
            return dict.fromkeys(names, math.nan)
        return dict(zip(names, torch.tensor(rows).double().mean(dim=0).tolist(), strict=True))


class BinaryMeter:
    """`error`, `precision`, `recall` and `f1` of logits against 0 or 1, over all known entries.

    `first` comes first in the result, as what the task is judged by where one metric counts: "f1"
    where ones are rare, as edges are, since a model that never says 1 errs little there.

    A logit above 0 says 1. `error` is the share that is wrong. Precision is NaN where nothing was
    said to be 1, recall where nothing is, `f1` where neither; it is that of 1, not a mean of both.
    """

    def __init__(self, first: Literal["error", "f1"] = "error") -> None:
        self.first = _one_of(first, ("error", "f1"))
        self.counts: Tensor | None = None

    def update(self, prediction: Tensor, target: Tensor) -> None:
        target = target.reshape(prediction.shape)
        known = target.isfinite()
        said, true = prediction[known] > 0, target[known] > 0.5
        counts = torch.stack(((said & true).sum(), said.sum(), true.sum(), known.sum()))
        self.counts = counts if self.counts is None else self.counts + counts

    def result(self) -> dict[str, float]:
        hits, said, true, known = (
            (0, 0, 0, 0) if self.counts is None else (int(count) for count in self.counts)
        )
        found = {
            "error": _ratio(said + true - 2 * hits, known),
            "precision": _ratio(hits, said),
            "recall": _ratio(hits, true),
            "f1": _ratio(2 * hits, said + true),
        }
        return {self.first: found[self.first]} | found


def mean_error(meters: Sequence[BinaryMeter]) -> float:
    """Mean over attributes of the share that is wrong, in percent: what papers tell of CelebA."""
    return 100 * sum(meter.result()["error"] for meter in meters) / len(meters)


def f1(meters: Sequence[BinaryMeter], average: Literal["macro", "micro"]) -> float:
    """F1 over several attributes: "macro" is the mean of each one's, "micro" that of all counts.

    Attributes whose F1 is undefined are left out of the macro mean (scikit-learn counts them 0).
    """
    if _one_of(average, ("macro", "micro")) == "macro":
        each = [meter.result()["f1"] for meter in meters]
        return torch.tensor(each, dtype=torch.float64).nanmean().item()
    counts = [meter.counts for meter in meters if meter.counts is not None]
    if not counts:
        return math.nan
    hits, said, true, _ = torch.stack(counts).sum(dim=0).tolist()
    return _ratio(2 * hits, said + true)


def delta_by_convention(
    results: Results, base: Results, convention: Literal["nash", "libmtl", "astmt"]
) -> float:
    """`delta_m` of results {task: {metric: number}} against `base`, in percent.

    * "nash" (Nash-MTL, CAGrad, FAMO): all metrics count equally, LOWER is better;
    * "libmtl": metrics averaged within tasks, tasks count equally, HIGHER is better;
    * "astmt" (ASTMT, MTI-Net): the first metric of each task, HIGHER is better.

    Raises ValueError for another convention, and where a metric that counts is NaN.
    """
    _one_of(convention, ("nash", "libmtl", "astmt"))
    chosen = [
        (task, metric)
        for task, numbers in base.items()
        for metric in list(numbers)[: 1 if convention == "astmt" else None]
    ]
    for task, metric in chosen:
        if math.isnan(base[task][metric]) or math.isnan(results[task][metric]):
            raise ValueError(
                f"{metric} of {task} is NaN, as of data in which nothing is known or nothing is 1: "
                "leave that metric out of results and base, or take more data"
            )
    return delta_m(
        [results[task][metric] for task, metric in chosen],
        [base[task][metric] for task, metric in chosen],
        [HIGHER_IS_BETTER[metric] for _, metric in chosen],
        groups=[task for task, _ in chosen] if convention == "libmtl" else None,
        sign="drop" if convention == "nash" else "gain",
    )


def _means(sums: Sequence[Tensor], over: str) -> list[float]:
    """Rows (..., count) of sums -> mean of all that was counted, or mean of the rows' means."""
    if not sums:
        return [math.nan, math.nan]
    rows = torch.stack(list(sums))
    if over == "set":
        rows = rows.sum(dim=0, keepdim=True)
    rows = rows[rows[:, -1] > 0]
    return (rows[:, :-1] / rows[:, -1:]).mean(dim=0).tolist()


def _angle_numbers(angles: Tensor) -> list[float]:
    ordered = angles.sort().values.double()
    middle = ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]
    shares = [(ordered < limit).double().mean().item() for limit in ANGLES]
    return [ordered.mean().item(), middle.item() / 2, *shares]


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else math.nan


def _one_of(choice: str, known: Sequence[str]) -> str:
    if choice not in known:
        raise ValueError(f"{choice!r} is none of {', '.join(known)}")
    return choice
