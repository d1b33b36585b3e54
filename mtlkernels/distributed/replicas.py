"""Replicated parameters: DistributedDataParallel, or a process group whose ranks hold the same.

Each rank's losses are means over its own samples, and what counts is their mean over the ranks, as
with DistributedDataParallel: g_t = (1/W) sum_r g_t,r. K is not additive over ranks, so rows are
reduced first, each to pieces that the ranks own; the sum over pieces of their inner products is K.
Parameters may be pieces of tensors themselves, of tensor parallelism: see `Held`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from mtlkernels.aggregation.families import (
    AnyMethod,
    Weighting,
    keeps_weights,
    takes_rows,
    task_step,
    weighs_losses,
)
from mtlkernels.aggregation.weighting import HEADS_ALONE, Unasked, no_gram, section_grams
from mtlkernels.autograd.backwards import Row, rows_of_tasks
from mtlkernels.autograd.scale import Scaler
from mtlkernels.autograd.self_check import SelfCheck
from mtlkernels.autograd.task_gradients import Rows, collect_rows
from mtlkernels.autograd.trial import Trial
from mtlkernels.distributed.buckets import Exchange, lay_out, mean_rows
from mtlkernels.distributed.checks import refuse_compiling
from mtlkernels.distributed.consensus import judge_together, watched_by
from mtlkernels.distributed.local_parameters import Held
from mtlkernels.distributed.pieces import piece_gram, piece_groups
from mtlkernels.distributed.replica_group import Meeting, Step, look_for_heads
from mtlkernels.distributed.replicas_weighted import loss_step, weighted_step
from mtlkernels.distributed.sender import Sender
from mtlkernels.engine.balanced_loss import writes_too
from mtlkernels.engine.gradient_step import combine_rows, reach, sections_of
from mtlkernels.engine.options import Options, check_keeps_rows
from mtlkernels.engine.parameters import Losses, refuse_reentrant_checkpoints
from mtlkernels.engine.plain import plain
from mtlkernels.report import Report, Status


class Replicas(Meeting):
    """Takes steps over W ranks that hold the same parameters, each with samples of its own."""

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
        refuse_compiling()
        with self.agreement.announced():
            now = self.begin(losses, params, method, options, features is not None, scaler)
            reach = self.reached(now)
        self.settle(now, reach, method, options)
        with task_step(method, now.names, self.agreement.present) as step_of:
            if step_of.alone:
                method, options, features = plain(method), options.of_plain_step(), None
            own = now.of_tasks(step_of.order)
            report = self._step(own, method, options, features, scaler, retain_graph, check)
        return report.of_tasks(now.tasks, step_of.order, Status.ZERO_GRADIENT)

    def _step(
        self,
        now: Step,
        method: AnyMethod,
        options: Options,
        features: Tensor | Sequence[Tensor] | None,
        scaler: Scaler | Tensor | None,
        retain_graph: bool,
        check: SelfCheck | None,
    ) -> Report:
        """A step of tasks each of which some rank has."""
        if weighs_losses(method):
            return loss_step(self, now, method, options, retain_graph)
        weights = None
        if keeps_weights(method):
            weights = method.kept_weights(now.tasks, scaler is not None)
        if weights is not None or features is not None or options.weighted:
            gram_method = cast(Weighting, method)
            report = weighted_step(self, now, gram_method, options, features, weights, retain_graph)
        else:
            report = self._by_rows(now, cast(Weighting, method), options, retain_graph, check)
        if keeps_weights(method):
            method.count(now.tasks)
        return report

    def check_surrounding(self, params: Sequence[Tensor]) -> None:
        """Raises where the backward pass around a balanced loss has gradients for parameters.

        DistributedDataParallel would reduce them, and overwrite the direction with the result; a
        process group would not reduce them at all.
        """
        if writes_too(params):
            raise NotImplementedError(
                "over several ranks the gradient of what is added to a balanced loss is not "
                "reduced with the others: add the penalty to one of the losses, or give it as a "
                "loss of its own"
            )

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
        """This rank's rows of one micro-batch; the ranks meet in `combine_rows` only."""
        refuse_compiling()
        check_keeps_rows(method, options)
        now = self.begin(losses, params, method, options, False, scaler)
        how, dtype = options.collect, options.rows_dtype
        trial = None
        if check is not None:
            trial = check.trial(now.tasks, now.params, now.held.row)
        rows, told = collect_rows(
            now.values, now.params, how, dtype, now.scale, retain_graph, trial
        )
        counts = reach(rows)
        refuse_reentrant_checkpoints(now.values, counts)
        if check is not None:
            check.saw_rows(now.tasks, now.params, rows, counts, trial)
        rows = [now.held.row(row) for row in rows]
        here = frozenset(now.tasks[t] for t in now.present)
        return Rows(now.tasks, now.losses, now.params, rows, now.scale, told, now.named, here)

    @torch.no_grad()
    def combine_rows(
        self, rows: Rows, method: Any, options: Options, check: SelfCheck | None = None
    ) -> Report:
        """`collect_step`'s rows over all ranks to .grad."""
        options.check(method)
        held, here = Held(rows.params), rows.present_positions()
        now = Step(
            *(rows.tasks, [], rows.losses, list(rows.params), held, rows.scale, rows.named, here)
        )
        reach = [[p for p, grad in enumerate(row) if grad is not None] for row in rows.grads]
        self.settle(now, reach, method, options)
        look_for_heads(check, now, rows.grads, options)
        with task_step(method, now.names, self.agreement.present) as step_of:
            if step_of.alone:
                method, options = plain(method), options.of_plain_step()
            own = now.of_tasks(step_of.order)
            report = self._combined(own, rows.of_tasks(step_of.order), method, options)
        return report.of_tasks(now.tasks, step_of.order, Status.ZERO_GRADIENT)

    def _combined(self, now: Step, rows: Rows, method: Any, options: Options) -> Report:
        """Rows of tasks each of which some rank has to .grad."""
        if takes_rows(method):
            return self._whole_rows(now, rows.grads, method, options, rows.collected)
        exchange, sections = self._exchange(now, options)
        self._send_all(exchange, rows.grads, options)
        local = self._local_gram(now, rows.grads, sections, options)
        return self._finish(now, exchange, method, options, rows.collected, local)

    def _by_rows(
        self,
        now: Step,
        method: Weighting,
        options: Options,
        retain_graph: bool,
        check: SelfCheck | None,
    ) -> Report:
        """T backwards, and the reduction of each task's row while the next one runs."""
        trial = None
        if check is not None:
            check.saw(now.tasks, now.params, now.reach)
            trial = check.trial(now.tasks, now.params, now.held.row)
        whole = takes_rows(method) or self.setting.gram == "unbiased" or options.collect != "loop"
        told = f"a backward a loss, rows reduced to {self.ranks} ranks' pieces"
        last = len(now.values) - 1
        rows: list[Row] = []
        if whole:
            with watched_by(trial, now.values, now.scale, retain_graph):
                rows, told = collect_rows(
                    *(now.values, now.params, options.collect, options.rows_dtype, now.scale),
                    retain_graph=retain_graph or (trial is not None and trial.retains),
                )
                rows = [now.held.row(row) for row in rows]
                if trial is not None:
                    trial.weigh(*rows)
            self._judge(check, trial, now, rows)
            look_for_heads(check, now, rows, options)
            if takes_rows(method):
                return self._whole_rows(now, rows, method, options, told)
        exchange, sections = self._exchange(now, options)
        if whole:
            self._send_all(exchange, rows, options)
            local = self._local_gram(now, rows, sections, options)
            return self._finish(now, exchange, method, options, told, local)
        with torch.no_grad():
            sender = Sender(exchange, last, options.weight_heads)
            with watched_by(trial, now.values, now.scale, retain_graph):
                retain = retain_graph or (trial is not None and trial.retains)
                for row in rows_of_tasks(now.values, now.params, retain, now.scale):
                    own = now.held.row(row)
                    if trial is not None:
                        trial.weigh(own)
                        trial.add(own)
                    if check is not None and options.shared is None:
                        check.heads.note(own)
                    sender.send(own)
                    del row, own
            while sender.task <= last:  # the other ranks wait for what a failed pass did not give
                sender.send([None] * len(now.params))
        self._judge(check, trial, now)
        look_for_heads(check, now, (), options)
        return self._finish(now, exchange, method, options, told)

    def _judge(
        self, check: SelfCheck | None, trial: Trial | None, now: Step, rows: Sequence[Row] = ()
    ) -> None:
        """Compares this step's task gradients; the ranks raise together."""
        if check is not None and trial is not None:
            trial.add(*rows)
            judge_together(trial, [self.hosts.of(self.group)])
            check.saw(now.tasks, now.params, now.reach, trial)

    @torch.no_grad()
    def _send_all(self, exchange: Exchange, rows: Sequence[Row], options: Options) -> None:
        sender = Sender(exchange, len(rows) - 1, options.weight_heads)
        for row in rows:
            sender.send(row)

    def _exchange(self, now: Step, options: Options) -> tuple[Exchange, list[list[int]]]:
        """The step's collectives, and positions of what is balanced, part by part."""
        balanced, heads = self.split(now, options)
        parts = options.parts
        sections = [balanced] if parts is None else sections_of(parts, now.params, balanced)
        last = len(now.tasks) - 1
        brought = {last: heads}
        if options.weight_heads:
            brought = {t: sorted(own & set(heads)) for t, own in enumerate(now.reach)}
        lanes = lay_out(
            now.held.tensors, now.held.copies, sections, brought, self.ranks, options.rows_dtype
        )
        return Exchange(lanes, self.group), sections

    def _local_gram(
        self,
        now: Step,
        rows: Sequence[Row],
        sections: Sequence[Sequence[int]],
        options: Options,
    ) -> Tensor | None:
        """The Gram matrix of this rank's own rows, where the statistic needs it."""
        if self.setting.gram == "exact":
            return None
        groups = piece_groups(rows, now.held, sections)
        return piece_gram(groups, len(rows), options.parts is not None, now.losses.device)

    @torch.no_grad()
    def _finish(
        self,
        now: Step,
        exchange: Exchange,
        method: Weighting,
        options: Options,
        collected: str,
        local: Tensor | None = None,
    ) -> Report:
        """Gram matrix, weights and direction from the pieces of T rows."""
        parts = None if options.parts is None else len(options.parts)
        num_sections = 1 if parts is None else parts
        pieces = exchange.parts(num_sections)
        if any(pieces):
            gram = section_grams(pieces, len(now.tasks), options.parts is not None)
        else:
            gram = no_gram(len(now.tasks), now.losses.device, parts)
            method, collected = Unasked(), collected + HEADS_ALONE
        found, losses = self.totals(now.held).judge(
            gram, now.losses, method, now.scale, options.weight_heads, self.setting, local
        )
        assert found.weights is not None
        head_weights = found.head_weights
        if head_weights is None:
            head_weights = torch.ones_like(found.status, dtype=torch.float64)
        weights = found.weights.view(num_sections, -1)
        exchange.write(pieces, weights, head_weights, now.held.tensors)
        now.held.hand_back()
        statistic = self.setting.gram
        return Report(
            now.tasks, found.gram, found.weights, losses, found.status, collected, statistic
        )

    def _whole_rows(
        self, now: Step, rows: Sequence[Row], method: Any, options: Options, collected: str
    ) -> Report:
        """For a row method: all rows on every rank, and then what one process does with them."""
        filled = [self.filled(row, own, now) for row, own in zip(rows, now.reach, strict=True)]
        means = mean_rows(filled, now.held.tensors, self.group)
        losses = self.totals(now.held).losses(now.losses, now.scale)
        told = f"{collected}, rows on every rank"
        found = Rows(now.tasks, losses, now.params, means, now.scale, told)
        return combine_rows(found, method, options)
