"""What every step over replicas has: checked arguments, an agreement, means over the ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mtlkernels.aggregation.families import AnyMethod, keeps_weights, takes_rows
from mtlkernels.autograd.backwards import Row, stack, starts
from mtlkernels.autograd.cut import reached_by
from mtlkernels.autograd.scale import Scaler, scale_of
from mtlkernels.autograd.self_check import SelfCheck
from mtlkernels.distributed.buckets import mean_rows
from mtlkernels.distributed.checks import losses_of_rank
from mtlkernels.distributed.collectives import Group, Hosts, OfRanks
from mtlkernels.distributed.consensus import Agreement, View, fingerprint
from mtlkernels.distributed.local_parameters import Held
from mtlkernels.distributed.setting import Setting
from mtlkernels.distributed.verdict import Totals
from mtlkernels.engine.gradient_step import split
from mtlkernels.engine.loss_step import write_row
from mtlkernels.engine.options import Options, check_step
from mtlkernels.engine.parameters import Losses, refuse_reentrant_checkpoints


@dataclass
class Step:
    """One step's arguments, checked; `losses` are this rank's own.

    Attributes:
        named: whether the tasks' names are more than their numbers.
        present: positions of the tasks of which this rank has a loss.
        reach: T sets of the parameters that a task reaches on some rank, once that is settled.
    """

    tasks: tuple[str, ...]
    values: list[Tensor]
    losses: Tensor
    params: list[Tensor]
    held: Held
    scale: Tensor | None
    named: bool
    present: Sequence[int]
    reach: list[set[int]] = field(default_factory=list)

    @property
    def names(self) -> tuple[str, ...] | int:
        """The names, or where there are none how many tasks there are."""
        return self.tasks if self.named else len(self.tasks)

    def of_tasks(self, order: Sequence[int]) -> Step:
        """The step of the tasks at some positions, in that order."""
        if list(order) == list(range(len(self.tasks))):
            return self
        losses = self.losses.unbind()
        return replace(
            self,
            tasks=tuple(self.tasks[t] for t in order),
            values=[self.values[t] for t in order if self.values],
            losses=torch.stack([losses[t] for t in order]),
            reach=[self.reach[t] for t in order],
        )


class Meeting(OfRanks):
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

    def begin(
        self,
        losses: Losses,
        params: Sequence[Tensor],
        method: AnyMethod,
        options: Options,
        features: bool,
        scaler: Scaler | Tensor | None,
    ) -> Step:
        """The arguments of a step, checked on this rank."""
        join = getattr(self.module, "_join_config", None)
        if join is not None and join.enable:
            raise NotImplementedError(
                "join() lets ranks run out of batches at different times, and a method needs all "
                "of them in each step: give all ranks equally many batches, for example with "
                "DistributedSampler(drop_last=True)"
            )
        given = losses_of_rank(losses, params)
        values = given.values
        kept = check_step(values, params, method, options, features, sharded=True)
        held = Held(kept)
        if held.sharded:
            _refuse_pieces(method, options, features)
        if options.collect == "ghost":
            raise NotImplementedError(
                'collect="ghost" finds K of the gradients of one process, and of replicas K is of '
                "their sums over the ranks, which it never forms: leave collect= out"
            )
        if features and self.setting.gram != "exact":
            raise ValueError(
                'gram="unbiased" is for rows over all shared parameters: leave out features='
            )
        scale = scale_of(scaler, values[0].device)
        losses_here = stack(values)
        return Step(
            *(given.tasks, values, losses_here, kept, held, scale, given.named, given.present)
        )

    def totals(self, held: Held) -> Totals:
        """Where sums over all ranks are formed."""
        ranks = self.ranks * held.ranks
        return Totals([self.group, *held.groups], ranks, self.ranks, self.hosts)

    def reached(self, now: Step) -> list[list[int]]:
        """T lists of the parameters that a task reaches on this rank, from the graph.

        Raises:
            ValueError: the graph may hide some.
        """
        found = reached_by(starts(now.values).edges, now.params)
        counts = [sum(p in own for own in map(set, found)) for p in range(len(now.params))]
        refuse_reentrant_checkpoints(now.values, counts)
        return found

    def settle(
        self, now: Step, reach: Sequence[Sequence[int]], method: AnyMethod, options: Options
    ) -> None:
        """Agrees on who reaches what, and which tasks some rank has; see `Agreement`."""
        self.agreement.settle(
            View.of(now.tasks, now.held.tensors, reach, now.present),
            lambda: fingerprint(cast(nn.Module, method), options, self.setting, now.params),
        )
        now.reach = self.agreement.reach[: len(now.tasks)]
        if not self.agreement.present:
            raise ValueError(
                f"all {len(now.tasks)} losses are None on all ranks: give at least one, or skip a "
                "batch that has no data for any task"
            )

    def split(self, now: Step, options: Options) -> tuple[list[int], list[int]]:
        """Positions of the parameters to balance, and of heads, on all ranks together."""
        marks: list[Row] = [
            [tensor if p in own else None for p, tensor in enumerate(now.held.tensors)]
            for own in now.reach
        ]
        return split(marks, now.params, options.shared)

    def filled(self, row: Row, reach: set[int], now: Step) -> Row:
        """A row with zeros where only other ranks have a gradient."""
        return [
            torch.zeros_like(tensor) if grad is None and p in reach else grad
            for p, (grad, tensor) in enumerate(zip(row, now.held.tensors, strict=True))
        ]

    @torch.no_grad()
    def write_mean(self, now: Step, row: Row) -> None:
        """Adds the mean over the ranks of one gradient to .grad: one all-reduce."""
        reach = set().union(*now.reach)
        filled = self.filled(now.held.row(row), reach, now)
        (mean,) = mean_rows([filled], now.held.tensors, self.group)
        write_row(mean, now.held.tensors)
        now.held.hand_back()


def look_for_heads(
    check: SelfCheck | None, now: Step, rows: Sequence[Row], options: Options
) -> None:
    """This rank's own look at its task gradients, some of which may have been noted already."""
    if check is not None and options.shared is None:
        for row in rows:
            check.heads.note(row)
        check.look_for_heads(now.tasks, now.params)


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
