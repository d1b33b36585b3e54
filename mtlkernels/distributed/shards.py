"""Sharded parameters: FSDP2 (`fully_shard`), HSDP and tensor parallelism, which are DTensors.

A rank holds a piece of each row, so K needs one sum of T x T numbers, the direction needs none, and
.grad gets DTensors back. Tensor parallelism hands gradients out of `torch.autograd.grad`, FSDP2 as
`FullyShard` says.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from mtlkernels.autograd.backwards import stack, starts, task_gradients, weighted_gradient
from mtlkernels.autograd.task_gradients import Rows
from mtlkernels.distributed.consensus import (
    judge_together,
    watched_by,
)
from mtlkernels.distributed.local_parameters import Held
from mtlkernels.distributed.pieces import combine_pieces
from mtlkernels.distributed.shard_group import ShardGroup
from mtlkernels.distributed.verdict import Totals
from mtlkernels.engine.base import CheckedStep, Engine, StepArguments
from mtlkernels.engine.gradient_step import reach, sections_of, split
from mtlkernels.engine.loss_step import weigh_losses, write_row
from mtlkernels.engine.parameters import refuse_reentrant_checkpoints
from mtlkernels.engine.weighted_step import combine_features, feature_gram
from mtlkernels.report import Report, Status


class Shards(ShardGroup, Engine):
    """Takes steps over the ranks of the parameters' mesh.

    Args:
        module: the model, for its FSDP2 modules.
        setting: what a person may choose.
    """

    def weigh_losses(self, now: CheckedStep, given: StepArguments) -> Report:
        """One backward pass of a loss method's loss of the mean losses."""
        held = Held(now.params)
        means = self._totals(held).losses(stack(now.values), now.scale)
        found = weigh_losses(given.method, means)
        self._once(now, held, found.weights, given.retain_graph)
        return found.finish(now.tasks, means, given.method, now.scale)

    def weigh_once(self, now: CheckedStep, given: StepArguments, weights: Tensor | None) -> Report:
        """One weighted backward pass, with kept weights or those measured on the features."""
        if weights is None:
            return self._by_features(now, given)
        held = Held(now.params)
        means = self._totals(held).losses(stack(now.values), now.scale)
        self._once(now, held, weights, given.retain_graph)
        status = torch.where(means.isfinite(), 0, Status.NON_FINITE.value)
        collected = "one weighted backward, with kept weights"
        return Report(now.tasks, None, weights, means, status, collected)

    def _once(self, now: CheckedStep, held: Held, weights: Tensor, retain_graph: bool) -> None:
        """One backward pass of the weighted sum, which adds to .grad."""
        weights = weights if now.scale is None else weights * now.scale.to(weights)
        if self.fsdp:
            self.fsdp.backward(starts(now.values), weights, retain_graph)
            return
        row = weighted_gradient(now.values, weights, held.params, retain_graph)
        write_row(held.row(row), held.tensors)
        held.hand_back()

    def collect(self, now: CheckedStep, given: StepArguments) -> Rows:
        """This rank's pieces of T task gradients, which the model's own collectives reduce."""
        scale, retain_graph, check = now.scale, given.retain_graph, given.check
        tasks, values, kept = now.tasks, now.values, now.params
        held = Held(kept)
        trial = None if check is None else check.trial(tasks, kept, held.row)
        if self.fsdp:
            rows = self.fsdp.rows(values, held, scale, retain_graph, trial)
            told = "a backward a loss through fully_shard"
        else:
            rows = []
            with watched_by(trial, values, scale, retain_graph):
                retain = retain_graph or (trial is not None and trial.retains)
                rows = task_gradients(values, kept, retain, scale, held.row)
                if trial is not None:
                    trial.weigh(*rows)
            if trial is not None:
                trial.add(*rows)
            told = "a backward a loss, of DTensors"
        if check is not None and trial is not None:
            judge_together(trial, [self.hosts.of(group) for group in held.groups])
            check.saw(tasks, kept, [range(len(kept))] * len(tasks), trial)
        if not self.fsdp:
            refuse_reentrant_checkpoints(values, reach(rows))
        return Rows(tasks, stack(values), kept, rows, scale, told)

    @torch.no_grad()
    def combine(self, now: CheckedStep, rows: Rows, given: StepArguments) -> Report:
        """From pieces of T task gradients to Gram matrix, weights and .grad."""
        method, options = given.method, given.options
        params, parts = rows.params, options.parts
        held = Held(params)
        balanced, heads = split(rows.grads, params, options.shared)
        sections = [balanced] if parts is None else sections_of(parts, params, balanced)
        totals = self._totals(held)
        return combine_pieces(
            rows,
            held,
            sections,
            heads,
            method,
            options,
            totals,
            self.setting,
            asked=bool(balanced),
        )

    def _by_features(self, now: CheckedStep, given: StepArguments) -> Report:
        """T backwards through the heads and one of the sum, whose gradients the features replace.

        What is above the features gets the plain sum, or with weight_heads the weighted one.
        """
        features, held = given.feature_list or [], Held(now.params)
        if not (self.fsdp and _own_samples(held)):
            raise NotImplementedError(
                "features= needs samples of its own on each rank: of DTensors that is "
                "fully_shard's without tensor parallelism; leave it out here"
            )
        begun = starts(now.values, now.scale)
        cotangents = self.fsdp.cotangents(begun, features)
        if not any(c is not None for row in cotangents for c in row):
            raise ValueError("no loss is computed from the features: give what the heads read")
        gram = feature_gram(cotangents) / held.ranks**2
        found, losses = self._totals(held).judge(
            *(gram, stack(now.values), given.method, now.scale, given.options.weight_heads),
            self.setting,
        )
        weights = found.weights
        assert weights is not None
        below = zip(features, combine_features(cotangents, weights), strict=True)
        replaced = [(feature, c) for feature, c in below if c is not None]
        self.fsdp.backward(begun, found.head_weights, given.retain_graph, replaced)
        told = "one backward through fully_shard, measured on the features"
        return Report(now.tasks, found.gram, weights, losses, found.status, told)

    def _totals(self, held: Held) -> Totals:
        return Totals(held.groups, held.ranks, self.hosts)


def _own_samples(held: Held) -> bool:
    """Whether all dimensions of fully_shard's mesh are for samples: one, or HSDP's two.

    HSDP replicates everything along the first and shards along the second, where tensor parallelism
    has fully_shard shard along the first.
    """
    if len(held.groups) == 1:
        return True
    meshes = [param.placements for param in held.params if isinstance(param, DTensor)]
    return all(len(own) == 2 and own[0].is_replicate() and own[1].is_shard() for own in meshes)
