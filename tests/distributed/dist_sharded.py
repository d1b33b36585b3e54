"""Models of DTensors for the scenarios, and their steps beside those of one process."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from dist_models import (
    Model,
    batches,
    follow,
    fresh,
    own,
    reference,
    sgd,
)
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

from mtlkernels import (
    MTLOptimizer,
)


class Heads(Model):
    """Returns what heads gave, so that losses are outside of fully_shard's modules."""

    def forward(self, x: Tensor) -> list[Tensor]:
        z = self.trunk(x)
        return [head(z) for head in self.heads]


class WithFeatures(Heads):
    """Returns the features beside what heads gave."""

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        z = self.trunk(x)
        return z, [head(z) for head in self.heads]


class Wide(Heads):
    """A trunk that can be cut, with a layer that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 4), nn.LayerNorm(4))


def losses(model: nn.Module, x: Tensor) -> list[Tensor]:
    aims = [x[:, :2] * (t + 1) - t for t in range(3)]
    return [(y - a).square().mean() + 0.1 for y, a in zip(model(x), aims, strict=True)]


def sharded(
    make: Callable[[], nn.Module] = Heads, dtype: torch.dtype = torch.float64, **options: Any
) -> nn.Module:
    model = fresh(make, dtype)
    for head in getattr(model, "heads", []):
        fully_shard(head, **options)
    if hasattr(model, "trunk"):
        fully_shard(model.trunk[0], **options)
    return fully_shard(model, **options)


def cut(model: nn.Module, mesh: DeviceMesh) -> nn.Module:
    plan = {"trunk.0": ColwiseParallel(), "trunk.2": RowwiseParallel()}
    return parallelize_module(model, mesh, plan)


def pair(method: Any, model: nn.Module, expected: nn.Module, **options: Any) -> tuple[Any, Any]:
    optimizer = MTLOptimizer(sgd(model), copy.deepcopy(method), module=model, **options)
    return optimizer, reference(expected, method, **options)


def steps(
    model: nn.Module,
    method: Any,
    part: Callable[[Tensor], Tensor] = own,
    of: Callable[[nn.Module, Tensor], list[Tensor]] = losses,
    make: Callable[[], nn.Module] = Heads,
    **options: Any,
) -> None:
    expected = fresh(make)
    optimizer, plain = pair(method, model, expected, **options)
    follow(
        model,
        lambda x: of(model, x),
        optimizer,
        Losses(expected, of),
        plain,
        batches(),
        part,
    )


class Losses(nn.Module):
    """A model whose call gives losses."""

    def __init__(self, model: nn.Module, of: Callable[[nn.Module, Tensor], list[Tensor]]) -> None:
        super().__init__()
        self.model, self.of = model, of

    def forward(self, x: Tensor) -> list[Tensor]:
        return self.of(self.model, x)


def same_batch(batch: Tensor) -> Tensor:
    return batch


def of_replica(batch: Tensor) -> Tensor:
    return batch.chunk(2)[dist.get_rank() // 2]
