"""Replicated parameters: DistributedDataParallel, or a process group whose ranks hold the same.

Each rank's losses are means over its own samples, and what counts is their mean over the ranks, as
with DistributedDataParallel: g_t = (1/W) sum_r g_t,r. K is not additive over ranks, so rows are
reduced first, each to pieces that the ranks own; the sum over pieces of their inner products is K.
Parameters may be pieces of tensors themselves, of tensor parallelism: see `Held`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mtlkernels.aggregation.families import (
    Weighting,
    takes_rows,
)
from mtlkernels.aggregation.weighting import HEADS_ALONE, Unasked, no_gram, section_grams
from mtlkernels.autograd.backwards import Row, rows_of_tasks
from mtlkernels.autograd.self_check import SelfCheck
from mtlkernels.autograd.task_gradients import Rows, collect_rows
from mtlkernels.autograd.trial import Trial
from mtlkernels.distributed.buckets import Exchange, lay_out, mean_rows
from mtlkernels.distributed.checks import refuse_compiling
from mtlkernels.distributed.consensus import judge_together, watched_by
from mtlkernels.distributed.local_parameters import Held
from mtlkernels.distributed.replica_group import ReplicaGroup, ReplicaStep, look_for_heads
from mtlkernels.distributed.replicas_weighted import loss_step, weighted_step
from mtlkernels.distributed.sender import Sender
from mtlkernels.engine.balanced_loss import writes_too
from mtlkernels.engine.base import Engine, StepArguments
from mtlkernels.engine.gradient_step import combine_rows, reach, sections_of
from mtlkernels.engine.options import Options, check_keeps_rows
from mtlkernels.engine.parameters import refuse_reentrant_checkpoints
from mtlkernels.report import Report


class Replicas(ReplicaGroup, Engine):
    """Takes steps over W ranks that hold the same parameters, each with samples of its own."""

    def agree(self, given: StepArguments) -> ReplicaStep:
        """The arguments, and which task reaches which parameter on some rank."""
        refuse_compiling()
        with self.agreement.announced():
            now = self.begin(given)
            reach = self.reached(now)
        return self.settle(now, reach, given)

    def agree_on_rows(self, rows: Rows, given: StepArguments) -> ReplicaStep:
        """As `agree`, of collected task gradients."""
        now = ReplicaStep(
            *(rows.tasks, rows.named, [None] * len(rows.tasks), list(rows.params), rows.scale),
            present=rows.present_positions(),
            losses=rows.losses,
            held=Held(rows.params),
        )
        reach = [[p for p, grad in enumerate(row) if grad is not None] for row in rows.grads]
        self.settle(now, reach, given)
        look_for_heads(given.check, now, rows.grads, given.options)
        return now

    def weigh_losses(self, now: ReplicaStep, given: StepArguments) -> Report:
        """One backward pass of a loss method's loss of the mean losses."""
        return loss_step(self, now, given)

    def weigh_once(self, now: ReplicaStep, given: StepArguments, weights: Tensor | None) -> Report:
        """One weighted backward pass on each rank."""
        return weighted_step(self, now, given, weights)

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

    def collect_step(self, given: StepArguments) -> Rows:
        """This rank's task gradients of one micro-batch; `combine_rows` is collective."""
        refuse_compiling()
        check_keeps_rows(given.method, given.options)
        now = self.begin(given)
        here = frozenset(now.tasks[t] for t in now.present)
        return replace(self.collect(now, given), named=now.named, present=here)

    def collect(self, now: ReplicaStep, given: StepArguments) -> Rows:
        """This rank's T backward passes."""
        options, check = given.options, given.check
        trial = None if check is None else check.trial(now.tasks, now.params, now.held.row)
        rows, collected = collect_rows(
            *(now.values, now.params, options.collect, options.rows_dtype, now.scale),
            *(given.retain_graph, trial),
        )
        counts = reach(rows)
        refuse_reentrant_checkpoints(now.values, counts)
        if check is not None:
            check.saw_rows(now.tasks, now.params, rows, counts, trial)
        rows = [now.held.row(row) for row in rows]
        return Rows(now.tasks, now.losses, now.params, rows, now.scale, collected)

    @torch.no_grad()
    def combine(self, now: ReplicaStep, rows: Rows, given: StepArguments) -> Report:
        """From task gradients, each of which some rank has, to .grad."""
        method, options = given.method, given.options
        if takes_rows(method):
            return self._whole_rows(now, rows.grads, method, options, rows.collected)
        exchange = self._exchange(now, options)
        self._send_all(exchange, rows.grads, options)
        return self._finish(now, exchange, method, options, rows.collected)

    def weigh_gradients(self, now: ReplicaStep, given: StepArguments) -> Report:
        """T backward passes, and the reduction of each task's gradients while the next one runs."""
        method, options, check = given.method, given.options, given.check
        trial = None
        if check is not None:
            check.saw(now.tasks, now.params, now.reach)
            trial = check.trial(now.tasks, now.params, now.held.row)
        if takes_rows(method) or options.collect != "loop":
            with watched_by(trial, now.values, now.scale, given.retain_graph):
                retain = given.retain_graph or (trial is not None and trial.retains)
                rows, collected = collect_rows(
                    *(now.values, now.params, options.collect, options.rows_dtype, now.scale),
                    retain_graph=retain,
                )
                rows = [now.held.row(row) for row in rows]
                if trial is not None:
                    trial.weigh(*rows)
            self._judge(check, trial, now, rows)
            look_for_heads(check, now, rows, options)
            found = Rows(now.tasks, now.losses, now.params, rows, now.scale, collected)
            return self.combine(now, found, given)
        exchange = self._exchange(now, options)
        last = len(now.values) - 1
        with torch.no_grad():
            sender = Sender(exchange, last, options.weight_heads)
            with watched_by(trial, now.values, now.scale, given.retain_graph):
                retain = given.retain_graph or (trial is not None and trial.retains)
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
        collected = f"a backward a loss, rows reduced to {self.ranks} ranks' pieces"
        return self._finish(now, exchange, method, options, collected)

    def _judge(
        self,
        check: SelfCheck | None,
        trial: Trial | None,
        now: ReplicaStep,
        rows: Sequence[Row] = (),
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

    def _exchange(self, now: ReplicaStep, options: Options) -> Exchange:
        """The collectives of the step."""
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
        return Exchange(lanes, self.group)

    @torch.no_grad()
    def _finish(
        self,
        now: ReplicaStep,
        exchange: Exchange,
        method: Weighting,
        options: Options,
        collected: str,
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
            gram, now.losses, method, now.scale, options.weight_heads, self.setting
        )
        assert found.weights is not None
        head_weights = found.head_weights
        if head_weights is None:
            head_weights = torch.ones_like(found.status, dtype=torch.float64)
        weights = found.weights.view(num_sections, -1)
        exchange.write(pieces, weights, head_weights, now.held.tensors)
        now.held.hand_back()
        return Report(now.tasks, found.gram, found.weights, losses, found.status, collected)

    def _whole_rows(
        self, now: ReplicaStep, rows: Sequence[Row], method: Any, options: Options, collected: str
    ) -> Report:
        """For a row method: all rows on every rank, and then what one process does with them."""
        filled = [self.filled(row, own, now) for row, own in zip(rows, now.reach, strict=True)]
        means = mean_rows(filled, now.held.tensors, self.group)
        losses = self.totals(now.held).losses(now.losses, now.scale)
        told = f"{collected}, rows on every rank"
        found = Rows(now.tasks, losses, now.params, means, now.scale, told)
        return combine_rows(found, method, options)
