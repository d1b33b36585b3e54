"""What every step over replicas has: checked arguments, an agreement, means over the ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mtlkernels.autograd.backwards import Row, stack, starts
from mtlkernels.autograd.cut import reached_by
from mtlkernels.autograd.scale import scale_of
from mtlkernels.autograd.self_check import SelfCheck
from mtlkernels.distributed.buckets import mean_rows
from mtlkernels.distributed.checks import losses_of_rank
from mtlkernels.distributed.collectives import Group, Hosts, OfRanks
from mtlkernels.distributed.consensus import Agreement, View, fingerprint
from mtlkernels.distributed.local_parameters import Held
from mtlkernels.distributed.setting import Setting
from mtlkernels.distributed.verdict import Totals
from mtlkernels.engine.base import CheckedStep, StepArguments
from mtlkernels.engine.gradient_step import split
from mtlkernels.engine.loss_step import write_row
from mtlkernels.engine.options import Options, check_step
from mtlkernels.engine.parameters import refuse_reentrant_checkpoints
from mtlkernels.engine.rules import refuse


@dataclass(kw_only=True)
class ReplicaStep(CheckedStep):
    """One step's arguments, checked on this rank.

    Attributes:
        losses: (T) this rank's own, 0 for a task of which it has none.
        held: the parameters, as this rank has them.
        reach: T sets of the parameters that a task reaches on some rank, once that is settled.
    """

    losses: Tensor
    held: Held
    reach: list[set[int]] = field(default_factory=list)

    def of_tasks(self, order: Sequence[int]) -> ReplicaStep:
        """The step of the tasks at some positions, in that order."""
        if list(order) == list(range(len(self.tasks))):
            return self
        losses = self.losses.unbind()
        return replace(
            self,
            tasks=tuple(self.tasks[t] for t in order),
            values=[self.values[t] for t in order],
            losses=torch.stack([losses[t] for t in order]),
            reach=[self.reach[t] for t in order],
        )


class ReplicaGroup(OfRanks):
    """W ranks that hold the same parameters.

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

    def begin(self, given: StepArguments) -> ReplicaStep:
        """The arguments of a step, checked on this rank."""
        method, options, features = given.method, given.options, given.features is not None
        join = getattr(self.module, "_join_config", None)
        if join is not None and join.enable:
            raise NotImplementedError(
                "join() lets ranks run out of batches at different times, and a method needs all "
                "of them in each step: give all ranks equally many batches, for example with "
                "DistributedSampler(drop_last=True)"
            )
        losses = losses_of_rank(given.losses, given.params)
        values = losses.values
        kept = check_step(values, given.params, method, options, features, sharded=True)
        held = Held(kept)
        words = options.words(method, features)
        if held.sharded:
            refuse(words, method, "replicas of DTensors")
        refuse(words, method, "a step of replicas")
        scale = scale_of(given.scaler, values[0].device)
        return ReplicaStep(
            *(losses.tasks, losses.named, values, kept, scale, losses.present),
            losses=stack(values),
            held=held,
        )

    def totals(self, held: Held) -> Totals:
        """Where sums over all ranks are formed."""
        ranks = self.ranks * held.ranks
        return Totals([self.group, *held.groups], ranks, self.hosts)

    def reached(self, now: ReplicaStep) -> list[list[int]]:
        """T lists of the parameters that a task reaches on this rank, from the graph.

        Raises:
            ValueError: the graph may hide some.
        """
        found = reached_by(starts(now.values).edges, now.params)
        counts = [sum(p in own for own in map(set, found)) for p in range(len(now.params))]
        refuse_reentrant_checkpoints(now.values, counts)
        return found

    def settle(
        self, now: ReplicaStep, reach: Sequence[Sequence[int]], given: StepArguments
    ) -> ReplicaStep:
        """Agrees on who reaches what, and which tasks some rank has; see `Agreement`."""
        self.agreement.settle(
            View.of(now.tasks, now.held.tensors, reach, now.present),
            lambda: fingerprint(given.method, given.options, self.setting, now.params),
        )
        now.reach = self.agreement.reach[: len(now.tasks)]
        if not self.agreement.present:
            raise ValueError(
                f"all {len(now.tasks)} losses are None on all ranks: give at least one, or skip a "
                "batch that has no data for any task"
            )
        now.present = self.agreement.present
        return now

    def split(self, now: ReplicaStep, options: Options) -> tuple[list[int], list[int]]:
        """Positions of the parameters to balance, and of heads, on all ranks together."""
        marks: list[Row] = [
            [tensor if p in own else None for p, tensor in enumerate(now.held.tensors)]
            for own in now.reach
        ]
        return split(marks, now.params, options.shared)

    def filled(self, row: Row, reach: set[int], now: ReplicaStep) -> Row:
        """A row with zeros where only other ranks have a gradient."""
        return [
            torch.zeros_like(tensor) if grad is None and p in reach else grad
            for p, (grad, tensor) in enumerate(zip(row, now.held.tensors, strict=True))
        ]

    @torch.no_grad()
    def write_mean(self, now: ReplicaStep, row: Row) -> None:
        """Adds the mean over the ranks of one gradient to .grad: one all-reduce."""
        reach = set().union(*now.reach)
        filled = self.filled(now.held.row(row), reach, now)
        (mean,) = mean_rows([filled], now.held.tensors, self.group)
        write_row(mean, now.held.tensors)
        now.held.hand_back()


def look_for_heads(
    check: SelfCheck | None, now: ReplicaStep, rows: Sequence[Row], options: Options
) -> None:
    """This rank's own look at its task gradients, some of which may have been noted already."""
    if check is not None and options.shared is None:
        for row in rows:
            check.heads.note(row)
        check.look_for_heads(now.tasks, now.params)
