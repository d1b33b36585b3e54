"""Replicated parameters: DistributedDataParallel, or a process group whose ranks hold the same.

Each rank's losses are means over its own samples, and what counts is their mean over the ranks, as
with DistributedDataParallel: g_t = (1/W) sum_r g_t,r. K is not additive over ranks, so rows are
reduced first, each to pieces that the ranks own; the sum over pieces of their inner products is K.
Parameters may be pieces of tensors themselves, of tensor parallelism: see `Held`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mtlkernels.aggregation import (
    Weighting,
    keeps_weights,
    section_grams,
    takes_rows,
    total_gram,
    weighs_losses,
)
from mtlkernels.arguments import Losses, Options, trainable
from mtlkernels.backprop import (
    AnyMethod,
    Scaler,
    check_keeps_rows,
    check_step,
    columns,
    combine_rows,
    scale_of,
    sections_of,
    split,
    stack,
    weigh_losses,
    write_row,
)
from mtlkernels.collect import Row, starts, task_gradients, weighted_gradient
from mtlkernels.cut import Cut, reached_by
from mtlkernels.distributed.agreement import Agreement, View, fingerprint
from mtlkernels.distributed.arguments import present_losses, refuse_compiling
from mtlkernels.distributed.collectives import Group, Hosts, OfRanks
from mtlkernels.distributed.placements import Held
from mtlkernels.distributed.segments import Exchange, lay_out, mean_rows
from mtlkernels.distributed.setting import Setting
from mtlkernels.distributed.verdict import Totals
from mtlkernels.layout import group_gradients
from mtlkernels.report import Report, Status
from mtlkernels.rows import Rows, collect_rows
from mtlkernels.weighted import feature_gram, gradients_of, run_heads, write_weighted


@dataclass
class _Step:
    """One step's arguments, checked; `losses` are this rank's own."""

    tasks: tuple[str, ...]
    values: list[Tensor]
    losses: Tensor
    params: list[Tensor]
    held: Held
    scale: Tensor | None


class Replicas(OfRanks):
    """Takes steps over W ranks that hold the same parameters, each with samples of its own.

    Args:
        group: the ranks.
        setting: what a person may choose.
        module: the DistributedDataParallel, to see that it is not in `join()`.
    """

    def __init__(self, group: Group, setting: Setting, module: nn.Module | None = None) -> None:
        self.group, self.setting, self.module = group, setting, module
        self.ranks = dist.get_world_size(group)
        self.hosts = Hosts()
        self.agreement = Agreement(self.hosts.of(group))

    def step(
        self,
        losses: Losses,
        params: Sequence[Tensor],
        method: AnyMethod,
        options: Options,
        features: Tensor | Sequence[Tensor] | None = None,
        scaler: Scaler | Tensor | None = None,
        retain_graph: bool = False,
    ) -> Report:
        """`mtlkernels.backward` over the ranks."""
        now = self._begin(losses, params, method, options, features is not None, scaler)
        if weighs_losses(method):
            self._settle_graph(now, method, options)
            means = self._totals(now.held).losses(now.losses, now.scale)
            told = weigh_losses(method, means)
            factor = 1.0 if now.scale is None else now.scale.to(told.weights)
            row = weighted_gradient(now.values, told.weights * factor, now.params, retain_graph)
            self._write_mean(now, row)
            return told.finish(now.tasks, means, method, now.scale)
        weights = None
        if keeps_weights(method):
            weights = method.kept_weights(len(now.values), read=scaler is not None)
        if weights is not None or features is not None or options.weighted:
            gram_method = cast(Weighting, method)
            return self._weighted(now, gram_method, options, features, weights, retain_graph)
        return self._by_rows(now, cast(Weighting, method), options, retain_graph)

    def collect_step(
        self,
        losses: Losses,
        params: Sequence[Tensor],
        method: AnyMethod,
        options: Options,
        scaler: Scaler | Tensor | None = None,
        retain_graph: bool = False,
    ) -> Rows:
        """This rank's rows of one micro-batch; the ranks meet in `combine_rows` only."""
        check_keeps_rows(method, options)
        now = self._begin(losses, params, method, options, False, scaler)
        how, dtype = options.collect, options.rows_dtype
        rows, told = collect_rows(now.values, now.params, how, dtype, now.scale, retain_graph)
        rows = [now.held.row(row) for row in rows]
        return Rows(now.tasks, now.losses, rows, now.scale, told)

    @torch.no_grad()
    def combine_rows(
        self, rows: Rows, params: Sequence[Tensor], method: Any, options: Options
    ) -> Report:
        """`collect_step`'s rows over all ranks to .grad."""
        options.check(method)
        now = _Step(rows.tasks, [], rows.losses, list(params), Held(params), rows.scale)
        reach = [[p for p, grad in enumerate(row) if grad is not None] for row in rows.grads]
        self._settle(now, reach, method, options)
        if takes_rows(method):
            return self._whole_rows(now, rows.grads, method, options, rows.collected)
        exchange, sections = self._exchange(now, options)
        self._send_all(exchange, rows.grads, options)
        local = self._local_gram(now, rows.grads, sections, options)
        return self._finish(now, exchange, method, options, rows.collected, local)

    def _begin(
        self,
        losses: Losses,
        params: Sequence[Tensor],
        method: AnyMethod,
        options: Options,
        features: bool,
        scaler: Scaler | Tensor | None,
    ) -> _Step:
        refuse_compiling()
        join = getattr(self.module, "_join_config", None)
        if join is not None and join.enable:
            raise NotImplementedError(
                "join() lets ranks run out of batches at different times, and a method needs all "
                "of them in each step: give all ranks equally many batches, for example with "
                "DistributedSampler(drop_last=True)"
            )
        tasks, values = present_losses(losses, params)
        kept = check_step(values, params, method, options, features, sharded=True)
        held = Held(kept)
        if held.sharded:
            _refuse_pieces(method, options, features)
        scale = scale_of(scaler, values[0].device)
        return _Step(tasks, values, stack(values), kept, held, scale)

    def _totals(self, held: Held) -> Totals:
        ranks = self.ranks * held.ranks
        return Totals([self.group, *held.groups], ranks, self.ranks, self.hosts)

    def _settle_graph(self, now: _Step, method: AnyMethod, options: Options) -> None:
        edges = starts(now.values).edges
        self._settle(now, reached_by(edges, now.params), method, options)

    def _settle(
        self, now: _Step, reach: Sequence[Sequence[int]], method: AnyMethod, options: Options
    ) -> None:
        self.agreement.settle(
            View.of(now.tasks, now.held.tensors, reach),
            lambda: fingerprint(cast(nn.Module, method), options, self.setting, now.params),
        )

    def _by_rows(
        self, now: _Step, method: Weighting, options: Options, retain_graph: bool
    ) -> Report:
        """T backwards, and the reduction of each task's row while the next one runs."""
        self._settle_graph(now, method, options)
        whole = takes_rows(method) or self.setting.gram == "unbiased" or options.collect != "loop"
        told = f"a backward a loss, rows reduced to {self.ranks} ranks' pieces"
        last = len(now.values) - 1
        if whole:
            dtype = options.rows_dtype
            rows, told = collect_rows(
                now.values, now.params, options.collect, dtype, now.scale, retain_graph
            )
            rows = [now.held.row(row) for row in rows]
            if takes_rows(method):
                return self._whole_rows(now, rows, method, options, told)
        exchange, sections = self._exchange(now, options)
        if whole:
            self._send_all(exchange, rows, options)
            local = self._local_gram(now, rows, sections, options)
            return self._finish(now, exchange, method, options, told, local)
        with torch.no_grad():
            sender = _Sender(exchange, last, options.weight_heads)
            for t, value in enumerate(now.values):
                retain = retain_graph or t < last
                (row,) = task_gradients([value], now.params, retain, now.scale)
                sender.send(now.held.row(row))
                del row
        return self._finish(now, exchange, method, options, told)

    @torch.no_grad()
    def _send_all(self, exchange: Exchange, rows: Sequence[Row], options: Options) -> None:
        sender = _Sender(exchange, len(rows) - 1, options.weight_heads)
        for row in rows:
            sender.send(row)

    def _exchange(self, now: _Step, options: Options) -> tuple[Exchange, list[list[int]]]:
        """The step's collectives, and positions of what is balanced, part by part."""
        balanced, heads = self._split(now, options)
        parts = options.parts
        sections = [balanced] if parts is None else sections_of(parts, now.params, balanced)
        last = len(now.tasks) - 1
        brought = {last: heads}
        if options.weight_heads:
            brought = {t: sorted(own & set(heads)) for t, own in enumerate(self.agreement.reach)}
        lanes = lay_out(
            now.held.tensors, now.held.copies, sections, brought, self.ranks, options.rows_dtype
        )
        return Exchange(lanes, self.group), sections

    def _split(self, now: _Step, options: Options) -> tuple[list[int], list[int]]:
        marks: list[Row] = [
            [tensor if p in own else None for p, tensor in enumerate(now.held.tensors)]
            for own in self.agreement.reach[: len(now.tasks)]
        ]
        return split(marks, now.params, options.shared)

    def _local_gram(
        self,
        now: _Step,
        rows: Sequence[Row],
        sections: Sequence[Sequence[int]],
        options: Options,
    ) -> Tensor | None:
        """The Gram matrix of this rank's own rows, where the statistic needs it."""
        if self.setting.gram == "exact":
            return None
        held = now.held
        groups = [
            group_gradients(
                columns(rows, part),
                [held.tensors[p] for p in part],
                [held.copies[p] for p in part],
            )
            for part in sections
        ]
        return section_grams(groups, len(rows), options.parts is not None)

    @torch.no_grad()
    def _finish(
        self,
        now: _Step,
        exchange: Exchange,
        method: Weighting,
        options: Options,
        collected: str,
        local: Tensor | None = None,
    ) -> Report:
        """Gram matrix, weights and direction from the pieces of T rows."""
        num_sections = 1 if options.parts is None else len(options.parts)
        pieces = exchange.parts(num_sections)
        gram = section_grams(pieces, len(now.tasks), options.parts is not None)
        found, losses = self._totals(now.held).judge(
            gram, now.losses, method, now.scale, options.max_norm, self.setting, local
        )
        assert found.weights is not None
        head_weights = found.weights if options.weight_heads else torch.ones_like(found.weights)
        head_weights = head_weights.view(num_sections, -1)[0]
        weights = found.weights.view(num_sections, -1)
        exchange.write(pieces, weights, head_weights, now.held.tensors)
        now.held.hand_back()
        statistic = self.setting.gram
        return Report(
            now.tasks, found.gram, found.weights, losses, found.status, collected, statistic
        )

    def _whole_rows(
        self, now: _Step, rows: Sequence[Row], method: Any, options: Options, collected: str
    ) -> Report:
        """For a row method: all rows on every rank, and then what one process does with them."""
        filled = [
            self._filled(row, own, now) for row, own in zip(rows, self._reach(now), strict=True)
        ]
        means = mean_rows(filled, now.held.tensors, self.group)
        losses = self._totals(now.held).losses(now.losses, now.scale)
        found = Rows(now.tasks, losses, means, now.scale, f"{collected}, rows on every rank")
        return combine_rows(found, now.params, method, options)

    def _reach(self, now: _Step) -> list[set[int]]:
        return self.agreement.reach[: len(now.tasks)]

    def _filled(self, row: Row, reach: set[int], now: _Step) -> Row:
        """A row with zeros where only other ranks have a gradient."""
        return [
            torch.zeros_like(tensor) if grad is None and p in reach else grad
            for p, (grad, tensor) in enumerate(zip(row, now.held.tensors, strict=True))
        ]

    @torch.no_grad()
    def _write_mean(self, now: _Step, row: Row) -> None:
        """Adds the mean over the ranks of one gradient to .grad: one all-reduce."""
        reach = set().union(*self._reach(now))
        filled = self._filled(now.held.row(row), reach, now)
        (mean,) = mean_rows([filled], now.held.tensors, self.group)
        write_row(mean, now.held.tensors)
        now.held.hand_back()

    def _weighted(
        self,
        now: _Step,
        method: Weighting,
        options: Options,
        features: Tensor | Sequence[Tensor] | None,
        weights: Tensor | None,
        retain_graph: bool,
    ) -> Report:
        """One weighted backward on each rank, and one all-reduce of what comes of it."""
        given = [features] if isinstance(features, Tensor) else features
        reach = reached_by(starts(now.values).edges, now.params)

        def decide(cut: Cut) -> set[int]:
            extra = [] if given is None else [cut.below]
            self._settle(now, [*reach, *extra], method, options)
            if options.weight_heads:
                return set(range(len(now.params)))
            below = set().union(*self.agreement.reach[len(now.tasks) :])
            balanced = set(self._split(now, options)[0])
            return balanced if options.shared is not None else balanced | below

        heads = run_heads(now.values, now.params, options, given, now.scale, retain_graph, decide)
        totals = self._totals(now.held)
        if weights is not None:
            losses = totals.losses(now.losses, now.scale)
            status = torch.where(losses.isfinite(), 0, Status.NON_FINITE.value)
            gram, told = None, "with kept weights"
        else:
            if given is not None:
                # The ranks' samples are disjoint, so their rows at the features lie side by side;
                # of a mean over W ranks, each has a W-th.
                gram = feature_gram(heads.above.cotangents) / self.ranks**2
                told = "measured on the features"
            else:
                measure = trainable(options.measure or [], now.params, "measure")
                gram = self._measured_gram(now, gradients_of(heads, now.params, measure), measure)
                gram = gram / self.ranks
                told = "measured on given parameters"
            found, losses = totals.judge(gram, now.losses, method, now.scale, None, self.setting)
            gram, weights, status = found.gram, found.weights, found.status
            assert weights is not None
        shadows = [param.detach() for param in now.params]
        write_weighted(heads, now.params, weights, retain_graph, into=shadows)
        self._write_mean(now, [shadow.grad for shadow in shadows])
        collected = f"one weighted backward, {told}"
        return Report(now.tasks, gram, weights, losses, status, collected)

    @torch.no_grad()
    def _measured_gram(self, now: _Step, rows: Sequence[Row], measure: Sequence[Tensor]) -> Tensor:
        """K over some parameters: their rows are reduced whole, so every rank has all of it."""
        place = {id(param): p for p, param in enumerate(now.params)}
        filled = [
            [
                torch.zeros_like(member) if grad is None and place[id(member)] in reach else grad
                for grad, member in zip(row, measure, strict=True)
            ]
            for row, reach in zip(rows, self._reach(now), strict=True)
        ]
        groups = group_gradients(mean_rows(filled, measure, self.group), measure)
        if not groups:
            raise ValueError("no loss reaches any of the parameters that measure= names")
        return total_gram(groups, len(rows))


class _Sender:
    """Sends T rows in order; heads go with their own task's row, or all together with the last."""

    def __init__(self, exchange: Exchange, last: int, apart: bool) -> None:
        self.exchange, self.last, self.apart = exchange, last, apart
        self.task = 0
        self.members = {
            p
            for lane in exchange.lanes
            for segments in lane.heads.values()
            for segment in segments
            for p in segment.whole.params
        }
        self.sum: Row = []

    def send(self, row: Row) -> None:
        heads = row
        if not self.apart:
            self.sum = self.sum or [None] * len(row)
            for p in self.members:
                have, more = self.sum[p], row[p]
                if more is not None:
                    self.sum[p] = more if have is None else have + more
            heads = self.sum
        self.exchange.send(self.task, row, heads)
        self.task += 1


def _refuse_pieces(method: AnyMethod, options: Options, features: bool) -> None:
    """What needs whole gradients, or a look into the graph, where parameters are DTensors."""
    if takes_rows(method):
        raise NotImplementedError(
            f"{type(method).__name__} takes whole gradients, and these parameters are pieces "
            "(DTensors): use a Gram or a loss method"
        )
    if features or options.weighted or keeps_weights(method) or options.collect != "loop":
        raise NotImplementedError(
            "features=, measure=, apply=, every= and collect= look into a graph of plain tensors, "
            "and these parameters are DTensors: leave them out"
        )
