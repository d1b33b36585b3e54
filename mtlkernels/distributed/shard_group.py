"""What every step over sharded parameters has: checked arguments, settled once with all ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from mtlkernels.aggregation.families import AnyMethod
from mtlkernels.autograd.scale import scale_of
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
from mtlkernels.engine.base import CheckedStep, StepArguments
from mtlkernels.engine.options import check_step


class ShardGroup(OfRanks):
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

    def begin(self, given: StepArguments) -> CheckedStep:
        """The arguments of a step, checked on this rank, and settled with the others."""
        refuse_compiling()
        params, method, options = given.params, given.method, given.options
        features = given.features is not None
        agreements = self._first_agreements(params)
        with announced(agreements):
            losses = losses_of_rank(given.losses, params)
            kept = check_step(losses.values, params, method, options, features, sharded=True)
            if self.fsdp:
                self._check_sharded(losses.values, kept, method)
        settle_together(
            agreements,
            View.of(losses.tasks, kept, [], losses.present),
            lambda: fingerprint(method, options, self.setting, kept),
        )
        self._agreed = True
        if not losses.present:
            raise ValueError(
                f"all {len(losses.tasks)} losses are None: give at least one, or skip a batch that "
                "has no data for any task"
            )
        scale = scale_of(given.scaler, losses.values[0].device)
        tasks, named, present = losses.tasks, losses.named, losses.present
        return CheckedStep(tasks, named, losses.values, kept, scale, present)

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
