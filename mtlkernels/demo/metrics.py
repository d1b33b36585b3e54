"""Losses and metrics on dense maps with unknown pixels, and the delta against single-task training.

An unknown pixel holds NaN in its target. Errors are averaged over known pixels by weighting instead
of indexing, so no shape depends on data and nothing waits for the device.
"""

from __future__ import annotations

from collections.abc import Sequence

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
    values: Sequence[float], base: Sequence[float], higher_is_better: Sequence[bool]
) -> float:
    """Mean relative drop of `values` against `base`, in percent: lower is better, 0 is a tie.

    100 / T * sum_t s_t (values_t - base_t) / base_t with s_t = -1 where higher is better and +1
    elsewhere, one metric a task: the sign convention of the Nash-MTL and CAGrad code, which ASTMT
    and LibMTL reverse.
    """
    drops = [
        (b - v if higher else v - b) / b
        for v, b, higher in zip(values, base, higher_is_better, strict=True)
    ]
    return 100 * sum(drops) / len(drops)
