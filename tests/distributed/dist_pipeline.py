"""A model cut into two stages that send and receive by hand, for the scenarios."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from dist_models import (
    whole,
)
from torch import Tensor, nn

TASKS = 3
Run = Callable[[], Tensor | None]


class First(nn.Module):
    """The layers of the trunk up to a place."""

    def __init__(self, model: Any, cut: int) -> None:
        super().__init__()
        self.trunk = model.trunk[:cut]

    def forward(self, x: Tensor) -> Tensor:
        return self.trunk(x)


class Last(nn.Module):
    """The layers behind it, and the heads."""

    def __init__(self, model: Any, cut: int) -> None:
        super().__init__()
        self.trunk, self.heads = model.trunk[cut:], model.heads

    def forward(self, z: Tensor) -> tuple[Tensor, ...]:
        z = self.trunk(z)
        return tuple(head(z) for head in self.heads)


def losses(answers: Sequence[Tensor], x: Tensor) -> list[Tensor]:
    aims = [x[:, :2] * (t + 1) - t for t in range(TASKS)]
    return [(y - a).square().mean() + 0.1 for y, a in zip(answers, aims, strict=True)]


class ByHand:
    """Two stages in a group, of which this rank has one; a forward, then T backwards of it."""

    def __init__(self, model: Any, group: Any = None, cut: int = 1) -> None:
        self.group = group or dist.group.WORLD
        self.first = dist.get_rank(self.group) == 0
        self.other = dist.get_process_group_ranks(self.group)[1 if self.first else 0]
        self.width = model.trunk[cut - 1].out_features
        self.stage: nn.Module = (First if self.first else Last)(model, cut)

    def runs(self, x: Tensor, scale: float = 1, spoilt: int | None = None) -> list[Run]:
        """Runs the forward of a batch; T functions that each run a backward.

        spoilt: a task whose loss is to be infinite.
        """
        if self.first:
            y = self.stage(x)
            dist.send(y.detach(), self.other)
            cotangent = torch.empty_like(y)

            def pull() -> None:
                dist.recv(cotangent, self.other)
                y.backward(cotangent, retain_graph=True)

            return [pull] * TASKS
        z = x.new_empty(len(x), self.width)
        dist.recv(z, self.other)
        z.requires_grad_()
        found = losses(self.stage(z), x)
        if spoilt is not None:
            found[spoilt] = found[spoilt] * float("inf")

        def push(loss: Tensor) -> Tensor:
            z.grad = None
            (loss * scale).backward(retain_graph=True)
            dist.send(z.grad, self.other)
            return loss

        return [lambda loss=loss: push(loss) for loss in found]


def same_stage(stage: nn.Module, expected: Any, cut: int = 1, **bounds: Any) -> None:
    """Parameters and .grad of this rank's stage beside those of the whole model."""
    wanted = (First if isinstance(stage, First) else Last)(expected, cut)
    for (name, param), want in zip(stage.named_parameters(), wanted.parameters(), strict=True):
        assert (param.grad is None) == (want.grad is None), name
        if want.grad is not None:
            torch.testing.assert_close(whole(param.grad), want.grad, **bounds)
        torch.testing.assert_close(whole(param.detach()), want.detach(), **bounds)
