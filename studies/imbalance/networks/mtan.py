"""MTAN: a shared SegNet, and for each task an attention that picks from each of its ten levels.

S. Liu, E. Johns and A. Davison, End-to-End Multi-Task Learning with Attention, CVPR 2019.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from studies.imbalance.networks.segnet import WIDTHS, SegNet, convolution, start


class Attention(nn.Module):
    """Features (B, inputs, H, W) -> a mask (B, width, H, W) in (0, 1), pixel by pixel."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(start(nn.Conv2d(inputs, width, kernel_size=1)), nn.BatchNorm2d(width), nn.ReLU()),
            *(start(nn.Conv2d(width, width, kernel_size=1)), nn.BatchNorm2d(width), nn.Sigmoid()),
        )

    def forward(self, features: Tensor) -> Tensor:
        mask: Tensor = self.layers(features)
        return mask


class MTANEncoder(nn.Module):
    """Image (B, 3, H, W) -> for each task features (B, widths[0], H, W).

    A level's mask comes from what enters the level and from what the task picked at the level
    before, and picks from what leaves the level. What was picked goes on through a convolution
    that all tasks share, pooled on the way down and enlarged on the way up. With three tasks
    44 117 184 parameters in 384 tensors.

    The published code counts all of them as shared, attentions included; each attention's gradient
    comes from its own task alone. `trunk` is the SegNet, which all tasks reach.
    """

    def __init__(self, tasks: Sequence[str], widths: Sequence[int] = WIDTHS) -> None:
        super().__init__()
        self.channels = widths[0]
        self.trunk = SegNet(widths)
        below = (widths[0], *widths[:-1])
        after = (*widths[1:], widths[-1])
        levels = range(len(widths))
        self.down = nn.ModuleDict(
            {
                task: nn.ModuleList(
                    Attention((2 if i else 1) * widths[i], widths[i]) for i in levels
                )
                for task in tasks
            }
        )
        self.up = nn.ModuleDict(
            {
                task: nn.ModuleList(Attention(widths[i] + below[i], below[i]) for i in levels)
                for task in tasks
            }
        )
        self.down_shared = nn.ModuleList(convolution(widths[i], after[i]) for i in levels)
        self.up_shared = nn.ModuleList(convolution(widths[i], below[i]) for i in levels)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        down, up = self.trunk.levels(image)
        return {task: self._pick(task, down, up) for task in self.down}

    def _pick(
        self, task: str, down: list[tuple[Tensor, Tensor]], up: list[tuple[Tensor, Tensor]]
    ) -> Tensor:
        picked: Tensor | None = None
        for level, (entering, leaving) in enumerate(down):
            seen = entering if picked is None else torch.cat((entering, picked), dim=1)
            chosen = self._attend(self.down, task, level, seen) * leaving
            picked = functional.max_pool2d(self.down_shared[level](chosen), 2)
        assert picked is not None
        for level, (entering, leaving) in zip(reversed(range(len(up))), up, strict=True):
            larger = functional.interpolate(
                picked, size=entering.shape[-2:], mode="bilinear", align_corners=True
            )
            seen = torch.cat((entering, self.up_shared[level](larger)), dim=1)
            picked = self._attend(self.up, task, level, seen) * leaving
        return picked

    @staticmethod
    def _attend(attentions: nn.ModuleDict, task: str, level: int, seen: Tensor) -> Tensor:
        of_task = attentions[task]
        assert isinstance(of_task, nn.ModuleList)
        mask: Tensor = of_task[level](seen)
        return mask

    def last_layer(self) -> nn.Module:
        """The last layer that all tasks share: the trunk's."""
        return self.trunk.last_layer()


class MTAN(nn.Module):
    """Image -> a prediction a task, each head on its task's own features."""

    def __init__(self, heads: Mapping[str, nn.Module], widths: Sequence[int] = WIDTHS) -> None:
        super().__init__()
        self.encoder = MTANEncoder(tuple(heads), widths)
        self.heads = nn.ModuleDict(heads)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        features = self.encoder(image)
        return {task: head(features[task]) for task, head in self.heads.items()}
