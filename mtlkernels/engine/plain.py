"""Plain training, for a step in which only one of several tasks is present."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from mtlkernels.aggregation.families import AnyMethod, weighs_losses


class _Plain:
    """A method without a state."""

    def state_dict(self) -> dict[str, Tensor]:
        return {}

    def __repr__(self) -> str:
        return "plain training"


class _PlainWeighting(_Plain):
    """The direction is the gradient; the status comes from K."""

    status = torch.empty(0, dtype=torch.int64)

    def __call__(self, gram: Tensor, losses: Tensor | None = None) -> Tensor:
        return torch.ones_like(gram[0])


class _PlainLoss(_Plain):
    """The method's loss is the loss."""

    family = "loss"
    status = torch.empty(0, dtype=torch.int64)

    def __call__(self, losses: Tensor) -> Tensor:
        return losses.sum()

    def parameters(self) -> Iterator[nn.Parameter]:
        return iter(())


def plain(method: AnyMethod) -> AnyMethod:
    """The replacement of a method in a step with one task; the method's state does not change."""
    return _PlainLoss() if weighs_losses(method) else _PlainWeighting()
