"""The model of most tests: a trunk, and one head a task whose loss it returns."""

from __future__ import annotations

from torch import Tensor, nn


class Model(nn.Module):
    def __init__(self, tasks: int = 3) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 4))
        self.heads = nn.ModuleList(nn.Linear(4, 2) for _ in range(tasks))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        z = self.trunk(x)
        return {f"task {t}": (h(z) - t).square().mean() for t, h in enumerate(self.heads)}
