"""Models, batches and comparisons for the scenarios of several processes."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.distributed as dist
from dist_harness import DEVICE, alone
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from mtlkernels import MTLOptimizer, Report

Losses = Any


class Model(nn.Module):
    """A trunk of 74 numbers, which no world divides, and three heads."""

    def __init__(self, tasks: int = 3) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 4))
        self.heads = nn.ModuleList(nn.Linear(4, 2) for _ in range(tasks))

    def forward(self, x: Tensor) -> list[Tensor]:
        return self.losses(self.features(x), x)

    def features(self, x: Tensor) -> Tensor:
        return self.trunk(x)

    def losses(self, z: Tensor, x: Tensor) -> list[Tensor]:
        aims = [x[:, :2] * (t + 1) - t for t in range(len(self.heads))]
        pairs = zip(self.heads, aims, strict=True)
        return [(head(z) - aim).square().mean() + 0.1 for head, aim in pairs]


class Scalar(nn.Module):
    """One shared number: fewer than there are ranks."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([0.3]))

    def forward(self, x: Tensor) -> list[Tensor]:
        return [(self.w * x - 1).square().mean(), (self.w + x).square().mean()]


def fresh(make: Callable[[], nn.Module] = Model, dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    return make().to(dtype)


def batches(steps: int = 3, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """The same whole batches on every rank; `own` is a rank's part."""
    generator = torch.Generator("cpu").manual_seed(1)
    return [drawn(8, generator).to(dtype) for _ in range(steps)]


def drawn(count: int, generator: torch.Generator) -> Tensor:
    """The same numbers on every device."""
    numbers = torch.randn(count, 5, dtype=torch.float64, generator=generator, device="cpu")
    return numbers.to(DEVICE)


def own(batch: Tensor) -> Tensor:
    return batch.chunk(dist.get_world_size())[dist.get_rank()]


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def same_reports(report: Report, expected: Report, **bounds: float) -> None:
    assert report.tasks == expected.tasks
    for name in ("gram", "weights", "losses", "status"):
        have, want = getattr(report, name), getattr(expected, name)
        if want is None:
            assert have is None
        else:
            torch.testing.assert_close(have, want, **bounds)


def same_params(model: nn.Module, other: nn.Module, **bounds: float) -> None:
    pairs = list(zip(model.named_parameters(), other.parameters(), strict=True))
    for (name, param), expected in pairs:
        assert (param.grad is None) == (expected.grad is None), name
        if param.grad is not None and expected.grad is not None:
            torch.testing.assert_close(whole(param.grad), expected.grad, **bounds)
        torch.testing.assert_close(whole(param.detach()), expected.detach(), **bounds)


def ddp(model: nn.Module, method: Any, **options: Any) -> tuple[nn.Module, MTLOptimizer]:
    wrapped = DistributedDataParallel(model)
    return wrapped, MTLOptimizer(sgd(model), copy.deepcopy(method), module=wrapped, **options)


def reference(model: nn.Module, method: Any, **options: Any) -> MTLOptimizer:
    return MTLOptimizer(sgd(model), copy.deepcopy(method), **options)


def follow(
    model: nn.Module,
    run: nn.Module,
    optimizer: MTLOptimizer,
    expected: nn.Module,
    whole_optimizer: MTLOptimizer,
    data: Sequence[Tensor],
    part: Callable[[Tensor], Tensor] = own,
    **bounds: float,
) -> None:
    """Steps of the ranks beside those of one process on the whole batch."""
    for batch in data:
        report = optimizer.backward(run(part(batch)))
        with alone():
            wanted = whole_optimizer.backward(expected(batch))
        same_reports(report, wanted, **bounds)
        same_params(model, expected, **bounds)
        advance(optimizer, whole_optimizer)


def advance(*optimizers: MTLOptimizer) -> None:
    """Each takes its step, and lets the gradients go."""
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()


def told(error: type[Exception], part: str, run: Callable[[], Any]) -> None:
    """The call raises, on this rank, with that in its sentence."""
    with pytest.raises(error, match=re.escape(part)):
        run()


def everywhere(tensor: Tensor) -> list[Tensor]:
    """A tensor of every rank."""
    found = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(found, tensor.contiguous())
    return found
