"""What every step over sharded parameters has: checked arguments, settled once with all ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from mtlkernels.aggregation.families import AnyMethod
from mtlkernels.distributed.checks import losses_of_rank, refuse_compiling
from mtlkernels.distributed.collectives import Hosts, OfRanks
from mtlkernels.distributed.consensus import (
    Agreement,
    View,
    announced,
    fingerprint,
    settle_together,
)
from mtlkernels.distributed.fsdp import FullyShard
from mtlkernels.distributed.local_parameters import Held
from mtlkernels.distributed.setting import Setting
from mtlkernels.engine.options import Options, check_step
from mtlkernels.engine.parameters import Losses


@dataclass
class Begun:
    """One step's arguments, checked and settled; `present`: positions of tasks with a loss."""

    tasks: tuple[str, ...]
    named: bool
    values: list[Tensor]
    params: list[Tensor]
    present: Sequence[int]

    @property
    def names(self) -> tuple[str, ...] | int:
        """The names, or where there are none how many tasks there are."""
        return self.tasks if self.named else len(self.tasks)

    def of_tasks(self, order: Sequence[int]) -> Begun:
        """The step of the tasks at some positions, in that order."""
        tasks = tuple(self.tasks[t] for t in order)
        values = [self.values[t] for t in order]
        return Begun(tasks, self.named, values, self.params, range(len(tasks)))


class ShardMeeting(OfRanks):
    """The ranks of the parameters' mesh.

    Args:
        module: the model, for its FSDP2 modules.
        setting: what a person may choose.
    """

    def __init__(self, module: nn.Module, setting: Setting) -> None:
        self.setting = setting
        self.fsdp = FullyShard(module)
        self.hosts = Hosts()
        self._agreed = False

    def begin(
        self,
        losses: Losses,
        params: Sequence[Tensor],
        method: AnyMethod,
        options: Options,
        features: bool,
    ) -> Begun:
        """The arguments of a step, checked on this rank, and settled with the others."""
        refuse_compiling()
        agreements = self._first_agreements(params)
        with announced(agreements):
            given = losses_of_rank(losses, params)
            kept = check_step(given.values, params, method, options, features, sharded=True)
            if self.fsdp:
                self._check_sharded(given.values, kept, method)
        settle_together(
            agreements,
            View.of(given.tasks, kept, [], given.present),
            lambda: fingerprint(cast(nn.Module, method), options, self.setting, kept),
        )
        self._agreed = True
        if not given.present:
            raise ValueError(
                f"all {len(given.tasks)} losses are None: give at least one, or skip a batch that "
                "has no data for any task"
            )
        return Begun(given.tasks, given.named, given.values, kept, given.present)

    def _first_agreements(self, params: Sequence[Tensor]) -> list[Agreement]:
        """Those of the first step, on all ranks; later ones cost no word on the host."""
        if self._agreed:
            return []
        held = Held([p for p in params if isinstance(p, Tensor) and p.requires_grad])
        return [Agreement(self.hosts.of(group)) for group in held.groups]

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
