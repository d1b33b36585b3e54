"""Heads: one task's own layers on shared features, dense or one prediction a sample."""

from __future__ import annotations

from torch import Tensor, nn

from studies.imbalance.networks.segnet import convolution


def segnet_head(channels: int, outputs: int) -> nn.Module:
    """Features (B, channels, H, W) -> (B, outputs, H, W): two convolutions and nothing between.

    That of the MTAN release: NYUv2's three together have 111 889 parameters.
    """
    return nn.Sequential(
        nn.Conv2d(channels, channels, kernel_size=3, padding=1),
        nn.Conv2d(channels, outputs, kernel_size=1),
    )


def dense_head(channels: int, outputs: int, width: int = 256) -> nn.Module:
    """Features (B, channels, H, W) -> (B, outputs, H, W), at the features' resolution."""
    return nn.Sequential(convolution(channels, width), nn.Conv2d(width, outputs, kernel_size=1))


class SampleHead(nn.Module):
    """Features (B, channels) or (B, channels, H, W), whose mean is taken -> (B, outputs)."""

    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, outputs)

    def forward(self, features: Tensor) -> Tensor:
        pooled = features.mean(dim=(2, 3)) if features.ndim == 4 else features
        prediction: Tensor = self.linear(pooled)
        return prediction
