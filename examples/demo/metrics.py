"""Losses and metrics on dense maps with unknown pixels, and the delta against single-task training.

An unknown pixel holds NaN in its target. Errors are averaged over known pixels by weighting instead
of indexing, so no shape depends on data and nothing waits for the device.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional


def known_mean(error: Tensor, known: Tensor) -> Tensor:
    """Mean of `error` where `known` (same shape, bool), as a scalar; zero when nothing is known."""
    weight = known.to(error.dtype)
    return (error * weight).sum() / weight.sum().clamp(min=1)


def absolute_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean |prediction - target| over known pixels, both (B, 1, H, W), in the target's unit."""
    return known_mean((prediction - target.nan_to_num()).abs(), target.isfinite())


def cosine_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean 1 - cos of the angle between vectors (B, 3, H, W), of any length, over known pixels."""
    known = target.isfinite().all(dim=1)
    return known_mean(
        1 - functional.cosine_similarity(prediction, target.nan_to_num(), dim=1), known
    )


def edge_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean binary cross-entropy of logits (B, 1, H, W) against 0 or 1 over known pixels."""
    error = functional.binary_cross_entropy_with_logits(
        prediction, target.nan_to_num(), reduction="none"
    )
    return known_mean(error, target.isfinite())


def mean_angle(prediction: Tensor, target: Tensor) -> float:
    """Mean angle between predicted and true normals (B, 3, H, W) over known pixels, in degrees."""
    cosine = functional.cosine_similarity(prediction, target.nan_to_num(), dim=1).clamp(-1, 1)
    return known_mean(cosine.acos().rad2deg(), target.isfinite().all(dim=1)).item()


def average_precision(score: Tensor, target: Tensor) -> float:
    """Mean over the positives of the precision at each one's rank, over known pixels, in [0, 1].

    The step-wise area under the precision-recall curve, without interpolation; equal scores are
    ranked in their order of appearance.
    """
    known = target.isfinite()
    order = score[known].argsort(descending=True, stable=True)
    positive = target[known][order].double()
    rank = torch.arange(1, positive.numel() + 1, dtype=torch.float64, device=positive.device)
    precision = positive.cumsum(0) / rank
    return ((precision * positive).sum() / positive.sum()).item()


def accuracy(logits: Tensor, label: Tensor) -> float:
    """Share of rows of logits (B, C) whose largest entry is at `label` (B), in [0, 1]."""
    return (logits.argmax(dim=1) == label).double().mean().item()


def delta_m(
    values: Sequence[float],
    base: Sequence[float],
    higher_is_better: Sequence[bool],
    groups: Sequence[Hashable] | None = None,
    sign: Literal["drop", "gain"] = "drop",
) -> float:
    """Mean relative change of `values` against `base`, in percent; 0 is a tie.

    100 / M * sum_m s_m (values_m - base_m) / base_m over M metrics. With sign "drop" s_m = -1 where
    higher is better and +1 elsewhere, so lower is better; "gain" is the negative, so higher is
    better. `groups` names each metric's task: then metrics are averaged within tasks first and
    tasks count equally. Three conventions are in use, which rank methods differently:

    * Nash-MTL, CAGrad: "drop" over all metrics, so a task with five metrics counts five times;
    * LibMTL: "gain" with groups;
    * ASTMT, MTI-Net: "gain" with one metric a task.

    Raises ValueError where lengths differ or a base is zero.
    """
    changes: dict[Hashable, list[float]] = {}
    places = range(len(values)) if groups is None else groups
    for place, v, b, higher in zip(places, values, base, higher_is_better, strict=True):
        if b == 0:
            raise ValueError(f"there is no change relative to a base of zero, as in {list(base)}")
        changes.setdefault(place, []).append((b - v if higher else v - b) / b)
    means = [sum(found) / len(found) for found in changes.values()]
    drop = 100 * sum(means) / len(means)
    return drop if sign == "drop" else -drop
