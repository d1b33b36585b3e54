"""Sharded parameters: FSDP2 (`fully_shard`), HSDP and tensor parallelism, which are DTensors.

A rank holds a piece of each row, so K needs one sum of T x T numbers, the direction needs none, and
.grad gets DTensors back. Tensor parallelism hands gradients out of `torch.autograd.grad`, FSDP2 as
`FullyShard` says.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from mtlkernels.arguments import Losses, refuse_reentrant_checkpoints
from mtlkernels.by_losses import weigh_losses, write_row
from mtlkernels.by_rows import reach, sections_of, split
from mtlkernels.collect import stack, starts, task_gradients, weighted_gradient
from mtlkernels.distributed.agreement import (
    Agreement,
    View,
    fingerprint,
    judge_together,
    watched_by,
)
from mtlkernels.distributed.arguments import present_losses, refuse_compiling
from mtlkernels.distributed.collectives import Hosts, OfRanks
from mtlkernels.distributed.fsdp import FullyShard
from mtlkernels.distributed.pieces import combine_pieces
from mtlkernels.distributed.placements import Held
from mtlkernels.distributed.setting import Setting
from mtlkernels.distributed.verdict import Totals
from mtlkernels.families import AnyMethod, Weighting, keeps_weights, weighs_losses
from mtlkernels.options import Options, check_keeps_rows, check_step
from mtlkernels.report import Report, Status
from mtlkernels.rows import Rows
from mtlkernels.scaling import Scaler, scale_of
from mtlkernels.self_check import SelfCheck
from mtlkernels.weighted import combine_features, feature_gram


class Shards(OfRanks):
    """Takes steps over the ranks of the parameters' mesh.

    Args:
        module: the model, for its FSDP2 modules.
        setting: what a person may choose.
    """

    def __init__(self, module: nn.Module, setting: Setting) -> None:
        self.setting = setting
        self.fsdp = FullyShard(module)
        self.hosts = Hosts()
        self._agreed = False

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
        if not keeps_weights(method):
            return self._step(
                losses, params, method, options, features, scaler, retain_graph, check
            )
        tasks, values, kept = self._begin(losses, params, method, options, features is not None)
        weights = method.kept_weights(tasks, scaler is not None)
        if weights is None:
            report = self._step(
                losses, params, method, options, features, scaler, retain_graph, check
            )
        else:
            held, scale = Held(kept), scale_of(scaler, values[0].device)
            means = self._totals(held).losses(stack(values), scale)
            self._once(values, held, weights, scale, retain_graph)
            status = torch.where(means.isfinite(), 0, Status.NON_FINITE.value)
            told = "one weighted backward, with kept weights"
            report = Report(tasks, None, weights, means, status, told)
        method.count(tasks)
        return report

    def _step(
        self,
        losses: Losses,
        params: Sequence[Tensor],
        method: AnyMethod,
        options: Options,
        features: Tensor | Sequence[Tensor] | None,
        scaler: Scaler | Tensor | None,
        retain_graph: bool,
        check: SelfCheck | None,
    ) -> Report:
        """A step that asks the method."""
        if features is None and not weighs_losses(method):
            rows = self._rows(losses, params, method, options, scaler, retain_graph, check)
            return self.combine_rows(rows, cast(Any, method), options)
        tasks, values, kept = self._begin(losses, params, method, options, features is not None)
        held = Held(kept)
        scale = scale_of(scaler, values[0].device)
        if features is not None:
            given = [features] if isinstance(features, Tensor) else features
            return self._by_features(
                tasks, values, held, cast(Weighting, method), options, given, scale, retain_graph
            )
        assert weighs_losses(method)
        means = self._totals(held).losses(stack(values), scale)
        told = weigh_losses(method, means)
        self._once(values, held, told.weights, scale, retain_graph)
        return told.finish(tasks, means, method, scale)

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
        return self._rows(losses, params, method, options, scaler, retain_graph, check)

    def _rows(
        self,
        losses: Losses,
        params: Sequence[Tensor],
        method: AnyMethod,
        options: Options,
        scaler: Scaler | Tensor | None,
        retain_graph: bool,
        check: SelfCheck | None,
    ) -> Rows:
        tasks, values, kept = self._begin(losses, params, method, options, False)
        scale = scale_of(scaler, values[0].device)
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

    def _begin(
        self,
        losses: Losses,
        params: Sequence[Tensor],
        method: AnyMethod,
        options: Options,
        features: bool,
    ) -> tuple[tuple[str, ...], list[Tensor], list[Tensor]]:
        refuse_compiling()
        tasks, values = present_losses(losses, params)
        kept = check_step(values, params, method, options, features, sharded=True)
        if self.fsdp:
            self._check_sharded(values, kept, method)
        if not self._agreed:
            self._agree(tasks, kept, cast(nn.Module, method), options)
        return tasks, values, kept

    def _agree(
        self, tasks: tuple[str, ...], params: Sequence[Tensor], method: nn.Module, options: Options
    ) -> None:
        """Raises at the first step, on all ranks, where they are not set up alike."""
        for group in Held(params).groups:
            Agreement(self.hosts.of(group)).settle(
                View.of(tasks, params, []),
                lambda: fingerprint(method, options, self.setting, params),
            )
        self._agreed = True

    def _check_sharded(
        self, values: Sequence[Tensor], params: Sequence[Tensor], method: AnyMethod
    ) -> None:
        if any(value.grad_fn is None for value in values):
            raise ValueError(
                "a loss is None, and fully_shard's collectives need the same modules on all ranks: "
                "give 0 times a loss that runs through them"
            )
        own = {id(param) for param in cast(nn.Module, method).parameters()}
        plain = [
            i
            for i, param in enumerate(params)
            if not isinstance(param, DTensor) and id(param) not in own
        ]
        if plain:
            raise NotImplementedError(
                f"parameter {plain[0]} is a plain tensor beside those of fully_shard, which does "
                "not reduce it: shard it too (fully_shard the root module), before the optimizer "
                "takes the parameters"
            )

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
