"""Sharded parameters: FSDP2 (`fully_shard`), HSDP and tensor parallelism, which are DTensors.

A rank holds a piece of each row, so K needs one sum of T x T numbers, the direction needs none, and
.grad gets DTensors back. Tensor parallelism hands gradients out of `torch.autograd.grad`, FSDP2 as
`FullyShard` says.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from mtlkernels.aggregation.families import (
    AnyMethod,
    Weighting,
    keeps_weights,
    task_step,
    weighs_losses,
)
from mtlkernels.autograd.backwards import stack, starts, task_gradients, weighted_gradient
from mtlkernels.autograd.scale import Scaler, scale_of
from mtlkernels.autograd.self_check import SelfCheck
from mtlkernels.autograd.task_gradients import Rows
from mtlkernels.distributed.consensus import (
    judge_together,
    watched_by,
)
from mtlkernels.distributed.local_parameters import Held
from mtlkernels.distributed.pieces import combine_pieces
from mtlkernels.distributed.shard_group import Begun, ShardMeeting
from mtlkernels.distributed.verdict import Totals
from mtlkernels.engine.gradient_step import reach, sections_of, split
from mtlkernels.engine.loss_step import weigh_losses, write_row
from mtlkernels.engine.options import Options, check_keeps_rows
from mtlkernels.engine.parameters import Losses, refuse_reentrant_checkpoints
from mtlkernels.engine.plain import plain
from mtlkernels.engine.weighted_step import combine_features, feature_gram
from mtlkernels.report import Report, Status


class Shards(ShardMeeting):
    """Takes steps over the ranks of the parameters' mesh.

    Args:
        module: the model, for its FSDP2 modules.
        setting: what a person may choose.
    """

    def step(
        self,
        losses: Losses,
        params: Sequence[Tensor],
        method: AnyMethod,
        options: Options,
        features: Tensor | Sequence[Tensor] | None = None,
        scaler: Scaler | Tensor | None = None,
        retain_graph: bool = False,
        check: SelfCheck | None = None,
    ) -> Report:
        """`mtlkernels.backward` over the ranks."""
        now = self.begin(losses, params, method, options, features is not None)
        with task_step(method, now.names, now.present) as step_of:
            if step_of.alone:
                method, options, features = plain(method), options.of_plain_step(), None
            own = now.of_tasks(step_of.order)
            report = self._step(own, method, options, features, scaler, retain_graph, check)
        return report.of_tasks(now.tasks, step_of.order, Status.ZERO_GRADIENT)

    def _step(
        self,
        now: Begun,
        method: AnyMethod,
        options: Options,
        features: Tensor | Sequence[Tensor] | None,
        scaler: Scaler | Tensor | None,
        retain_graph: bool,
        check: SelfCheck | None,
    ) -> Report:
        """A step of tasks that have a loss."""
        tasks, values, kept = now.tasks, now.values, now.params
        scale = scale_of(scaler, values[0].device)
        kept_weights = None
        if keeps_weights(method):
            kept_weights = method.kept_weights(tasks, scaler is not None)
        if kept_weights is not None:
            held = Held(kept)
            means = self._totals(held).losses(stack(values), scale)
            self._once(values, held, kept_weights, scale, retain_graph)
            status = torch.where(means.isfinite(), 0, Status.NON_FINITE.value)
            told = "one weighted backward, with kept weights"
            report = Report(tasks, None, kept_weights, means, status, told)
        elif weighs_losses(method):
            held = Held(kept)
            means = self._totals(held).losses(stack(values), scale)
            found = weigh_losses(method, means)
            self._once(values, held, found.weights, scale, retain_graph)
            report = found.finish(tasks, means, method, scale)
        elif features is not None:
            given = [features] if isinstance(features, Tensor) else features
            weighting = cast(Weighting, method)
            report = self._by_features(
                tasks, values, Held(kept), weighting, options, given, scale, retain_graph
            )
        else:
            rows = self._rows(now, scale, retain_graph, check)
            report = self._combined(rows, cast(Weighting, method), options)
        if keeps_weights(method):
            method.count(tasks)
        return report

    def _once(
        self,
        values: Sequence[Tensor],
        held: Held,
        weights: Tensor,
        scale: Tensor | None,
        retain_graph: bool,
    ) -> None:
        """One backward of the weighted sum, which adds to .grad."""
        weights = weights if scale is None else weights * scale.to(weights)
        if self.fsdp:
            self.fsdp.backward(starts(values), weights, retain_graph)
            return
        row = weighted_gradient(values, weights, held.params, retain_graph)
        write_row(held.row(row), held.tensors)
        held.hand_back()

    def collect_step(
        self,
        losses: Losses,
        params: Sequence[Tensor],
        method: AnyMethod,
        options: Options,
        scaler: Scaler | Tensor | None = None,
        retain_graph: bool = False,
        check: SelfCheck | None = None,
    ) -> Rows:
        """This rank's pieces of T rows, which the model's own collectives have reduced."""
        check_keeps_rows(method, options)
        now = self.begin(losses, params, method, options, False)
        scale = scale_of(scaler, now.values[0].device)
        rows = self._rows(now.of_tasks(now.present), scale, retain_graph, check)
        return rows.with_absent(now.tasks, now.named)

    def _rows(
        self, now: Begun, scale: Tensor | None, retain_graph: bool, check: SelfCheck | None
    ) -> Rows:
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
    def combine_rows(
        self, rows: Rows, method: Any, options: Options, check: SelfCheck | None = None
    ) -> Report:
        """Pieces of T rows to Gram matrix, weights and .grad."""
        options.check(method)
        names = rows.tasks if rows.named else len(rows.tasks)
        with task_step(method, names, rows.present_positions()) as step_of:
            if step_of.alone:
                method, options = plain(method), options.of_plain_step()
            report = self._combined(rows.of_tasks(step_of.order), method, options)
        return report.of_tasks(rows.tasks, step_of.order, Status.ZERO_GRADIENT)

    def _combined(self, rows: Rows, method: Weighting, options: Options) -> Report:
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

    def _by_features(
        self,
        tasks: tuple[str, ...],
        values: Sequence[Tensor],
        held: Held,
        method: Weighting,
        options: Options,
        features: Sequence[Tensor],
        scale: Tensor | None,
        retain_graph: bool,
    ) -> Report:
        """T backwards through the heads and one of the sum, whose gradients the features replace.

        What is above the features gets the plain sum, or with weight_heads the weighted one.
        """
        if not (self.fsdp and _own_samples(held)):
            raise NotImplementedError(
                "features= needs samples of its own on each rank: of DTensors that is "
                "fully_shard's without tensor parallelism; leave it out here"
            )
        begun = starts(values, scale)
        cotangents = self.fsdp.cotangents(begun, features)
        if not any(c is not None for row in cotangents for c in row):
            raise ValueError("no loss is computed from the features: give what the heads read")
        gram = feature_gram(cotangents) / held.ranks**2
        found, losses = self._totals(held).judge(
            gram, stack(values), method, scale, options.weight_heads, self.setting
        )
        weights = found.weights
        assert weights is not None
        below = zip(features, combine_features(cotangents, weights), strict=True)
        replaced = [(feature, c) for feature, c in below if c is not None]
        self.fsdp.backward(begun, found.head_weights, retain_graph, replaced)
        told = "one backward through fully_shard, measured on the features"
        return Report(tasks, found.gram, weights, losses, found.status, told)

    def _totals(self, held: Held) -> Totals:
        return Totals(held.groups, held.ranks, 1, self.hosts)


def _own_samples(held: Held) -> bool:
    """Whether all dimensions of fully_shard's mesh are for samples: one, or HSDP's two.

    HSDP replicates everything along the first and shards along the second, where tensor parallelism
    has fully_shard shard along the first.
    """
    if len(held.groups) == 1:
        return True
    meshes = [param.placements for param in held.params if isinstance(param, DTensor)]
    return all(len(own) == 2 and own[0].is_replicate() and own[1].is_shard() for own in meshes)
