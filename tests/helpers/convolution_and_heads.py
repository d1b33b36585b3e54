"""A model of images: a trunk with a convolution, one head a task, and a layer that nothing uses."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn


class Model(nn.Module):
    """A trunk, one head a task and a part that nothing uses. The convolution is channels_last."""

    def __init__(self, tasks: int = 3) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        self.linear = nn.Linear(4 * 16, 5)
        self.heads = nn.ModuleList(nn.Linear(5, 2) for _ in range(tasks))
        self.unused = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> list[Tensor]:
        features = torch.tanh(self.linear(self.convolution(x).flatten(1)))
        return [(head(features) - t).square().mean() for t, head in enumerate(self.heads)]

    @property
    def trunk(self) -> list[nn.Parameter]:
        return [*self.convolution.parameters(), *self.linear.parameters()]


@pytest.fixture
def model() -> Model:
    torch.manual_seed(0)
    return Model()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(1))
