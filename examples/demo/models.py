"""A small encoder with one head a task: LeNet for digits, two scales of convolutions for maps."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional


class MultiTask(nn.Module):
    """One shared encoder, one head a task; `forward` maps inputs to one prediction a task."""

    def __init__(self, encoder: nn.Module, heads: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.encoder = encoder
        self.heads = nn.ModuleDict(heads)

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        features = self.encoder(inputs)
        return {name: head(features) for name, head in self.heads.items()}


class DenseEncoder(nn.Module):
    """Image (B, C, H, W) with even H, W -> features (B, 32, H/2, W/2).

    Dilated layers at a quarter of the resolution see about 120 pixels; the half-resolution branch
    keeps the outlines that depth edges need.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fine = _layer(channels, 16, kernel=5, stride=2)
        self.coarse = nn.Sequential(
            _layer(16, 32, stride=2),
            _layer(32, 32, dilation=2),
            _layer(32, 32, dilation=4),
            _layer(32, 32, dilation=8),
        )
        self.merge = _layer(16 + 32, 32)

    def forward(self, image: Tensor) -> Tensor:
        fine = self.fine(image)
        coarse = functional.interpolate(self.coarse(fine), size=fine.shape[-2:], mode="bilinear")
        merged: Tensor = self.merge(torch.cat((fine, coarse), dim=1))
        return merged


def dense_head(channels: int) -> nn.Module:
    """Features (B, 32, H/2, W/2) -> prediction (B, channels, H, W).

    Each feature predicts its 2 x 2 pixels apart: edges are thinner than an interpolation can draw.
    """
    return nn.Sequential(
        _layer(32, 16), nn.Conv2d(16, 4 * channels, kernel_size=1), nn.PixelShuffle(2)
    )


def _layer(
    inputs: int, outputs: int, kernel: int = 3, stride: int = 1, dilation: int = 1
) -> nn.Module:
    convolution = nn.Conv2d(
        inputs, outputs, kernel, stride, padding=dilation * (kernel // 2), dilation=dilation
    )
    return nn.Sequential(convolution, nn.GroupNorm(4, outputs), nn.ReLU())


def lenet_encoder() -> nn.Module:
    """Image (B, 1, 28, 28) -> features (B, 50): the 21 330-parameter trunk of the MGDA recipe.

    Its channel dropout is left out: methods that draw random numbers would see other masks than the
    rest.
    """
    return nn.Sequential(
        nn.Conv2d(1, 10, kernel_size=5),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(10, 20, kernel_size=5),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(320, 50),
        nn.ReLU(),
    )


def digit_head() -> nn.Module:
    """Features (B, 50) -> logits (B, 10)."""
    return nn.Sequential(nn.Linear(50, 50), nn.ReLU(), nn.Linear(50, 10))
