"""Steps over replicas that take one backward: loss methods, and weights from less than all rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mtlkernels.aggregation.layout import group_gradients
from mtlkernels.aggregation.weighting import HEADS_ALONE, Unasked, no_gram, total_gram
from mtlkernels.autograd.backwards import Row, weighted_gradient
from mtlkernels.distributed.buckets import mean_rows
from mtlkernels.distributed.replica_group import ReplicaGroup, ReplicaStep
from mtlkernels.engine.base import StepArguments
from mtlkernels.engine.loss_step import weigh_losses
from mtlkernels.engine.parameters import trainable
from mtlkernels.engine.weighted_step import (
    feature_gram,
    gradients_of,
    kept_head_weights,
    run_heads,
    write_weighted,
)
from mtlkernels.report import Report, Status


def loss_step(group: ReplicaGroup, now: ReplicaStep, given: StepArguments) -> Report:
    """The method's own loss of the mean losses: one backward on each rank, one all-reduce."""
    means = group.totals(now.held).losses(now.losses, now.scale)
    told = weigh_losses(given.method, means)
    factor = 1.0 if now.scale is None else now.scale.to(told.weights)
    row = weighted_gradient(now.values, told.weights * factor, now.params, given.retain_graph)
    group.write_mean(now, row)
    return told.finish(now.tasks, means, given.method, now.scale)


def weighted_step(
    group: ReplicaGroup, now: ReplicaStep, given: StepArguments, weights: Tensor | None
) -> Report:
    """One weighted backward on each rank, and one all-reduce of what comes of it."""
    method, options, retain_graph = given.method, given.options, given.retain_graph
    features = given.feature_list

    def decide() -> set[int]:
        return set(group.split(now, options)[0])

    heads = run_heads(now.values, now.params, options, features, now.scale, retain_graph, decide)
    totals = group.totals(now.held)
    if weights is not None and heads.balanced:
        losses = totals.losses(now.losses, now.scale)
        status = torch.where(losses.isfinite(), 0, Status.NON_FINITE.value)
        gram, told = None, "with kept weights"
        head_weights = kept_head_weights(method, weights) if options.weight_heads else None
    else:
        if not heads.balanced:
            gram, method = no_gram(len(now.tasks), now.losses.device), Unasked()
            told = f"unweighted{HEADS_ALONE}"
        elif features is not None:
            # The ranks' samples are disjoint, so their rows at the features lie side by side;
            # of a mean over W ranks, each has a W-th.
            gram = feature_gram(heads.above.cotangents) / group.ranks**2
            told = "measured on the features"
        else:
            measure = trainable(options.measure or [], now.params, "measure")
            gram = _measured_gram(group, now, gradients_of(heads, now.params, measure), measure)
            gram = gram / group.ranks
            told = "measured on given parameters"
        found, losses = totals.judge(
            gram, now.losses, method, now.scale, options.weight_heads, group.setting
        )
        gram, weights, status = found.gram, found.weights, found.status
        head_weights = found.head_weights
        assert weights is not None
    shadows = [param.detach() for param in now.params]
    write_weighted(heads, now.params, weights, head_weights, retain_graph, into=shadows)
    group.write_mean(now, [shadow.grad for shadow in shadows])
    collected = f"one weighted backward, {told}"
    return Report(now.tasks, gram, weights, losses, status, collected)


@torch.no_grad()
def _measured_gram(
    group: ReplicaGroup, now: ReplicaStep, rows: Sequence[Row], measure: Sequence[Tensor]
) -> Tensor:
    """K over some parameters: their rows are reduced whole, so every rank has all of it."""
    place = {id(param): p for p, param in enumerate(now.params)}
    filled = [
        [
            torch.zeros_like(member) if grad is None and place[id(member)] in reach else grad
            for grad, member in zip(row, measure, strict=True)
        ]
        for row, reach in zip(rows, now.reach, strict=True)
    ]
    groups = group_gradients(mean_rows(filled, measure, group.group), measure)
    if not groups:
        raise ValueError("no loss reaches any of the parameters that measure= names")
    return total_gram(groups, len(rows))
