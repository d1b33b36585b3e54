"""Steps over several ranks, on torch.distributed: which way a model's ranks share it."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from mtlkernels.distributed.pipeline import Stages, refuse_for_stages
from mtlkernels.distributed.replicas import Replicas
from mtlkernels.distributed.setting import Setting
from mtlkernels.distributed.shards import Shards
from mtlkernels.engine.base import Engine
from mtlkernels.engine.options import Options
from mtlkernels.engine.rules import refuse

__all__ = ["engine"]


def engine(
    module: nn.Module | None,
    process_group: dist.ProcessGroup | None,
    stages: dist.ProcessGroup | None,
    method: object,
    options: Options,
    **setting: Any,
) -> Engine:
    """Who takes steps over the ranks that `module`, `process_group` or `stages` speak of.

    Args:
        module: what DistributedDataParallel, fully_shard or parallelize_module gave.
        process_group: ranks that hold the same parameters, or the same pieces of them.
        stages: ranks that hold other parameters each, of one model.
        method, options: what the steps will be.
        setting: of `Setting`.

    Raises:
        NotImplementedError: a way that does not exist here, with what to do instead.
        ValueError: module says nothing of ranks, or both arguments do.
    """
    chosen = Setting(**setting)
    if stages is not None:
        refuse_for_stages(stages, module, process_group, method, options)
        return Stages(stages, chosen)
    if isinstance(module, DistributedDataParallel):
        _refuse_ddp(module)
        if process_group is not None:
            raise ValueError("module= has a process group of its own: leave out process_group=")
        return _replicas(module.process_group, chosen, method, options, module)
    if module is not None:
        _check_module(module)
        if process_group is None:
            refuse(options.words(method), method, "shards")
            return Shards(module, chosen)
        if any(isinstance(m, FSDPModule) for m in module.modules()):
            raise ValueError(
                "fully_shard reduces over its own mesh, a second dimension of which is for "
                "replicas (HSDP): leave out process_group="
            )
    assert process_group is not None
    return _replicas(process_group, chosen, method, options, None)


def _replicas(
    group: dist.ProcessGroup,
    setting: Setting,
    method: object,
    options: Options,
    module: nn.Module | None,
) -> Replicas:
    refuse(options.words(method), method, "replicas")
    return Replicas(group, setting, module)


def _refuse_ddp(module: DistributedDataParallel) -> None:
    if module.static_graph:
        raise NotImplementedError(
            "static_graph=True makes DistributedDataParallel expect one backward a step: leave it "
            "out, this library reduces the gradients itself"
        )
    if module.find_unused_parameters:
        raise NotImplementedError(
            "find_unused_parameters=True lets DistributedDataParallel reduce on its own in each "
            "forward: leave it out, parameters that a step does not reach are found here"
        )


def _check_module(module: nn.Module) -> None:
    if any(isinstance(m, FullyShardedDataParallel) for m in module.modules()):
        raise NotImplementedError(
            "FullyShardedDataParallel, FSDP1, cannot run several backwards of one forward: use "
            "torch.distributed.fsdp.fully_shard, its successor"
        )
    if any(isinstance(m, DistributedDataParallel) for m in module.modules()):
        raise ValueError(
            "module= holds a DistributedDataParallel below it: give that one, and have it hold all "
            "parameters"
        )
    if not any(isinstance(p, DTensor) for p in module.parameters()):
        raise ValueError(
            "module= has no parameters that say how ranks share them: give what "
            "DistributedDataParallel, fully_shard or parallelize_module returned, or "
            "process_group= for replicas that were made otherwise"
        )
