"""Parameter shapes of real models, and gradients of those shapes."""

from __future__ import annotations

import torch
from torch import Tensor

Shapes = list[tuple[int, ...]]


def lenet() -> Shapes:
    """Trunk of the MultiMNIST LeNet: two convolutions and a linear layer, 21 330 elements."""
    return [(10, 1, 5, 5), (10,), (20, 10, 5, 5), (20,), (50, 320), (50,)]


def resnet18() -> Shapes:
    """ResNet-18 without its classifier: 60 tensors, 11 176 512 elements."""
    shapes: Shapes = [(64, 3, 7, 7), (64,), (64,)]
    channels = 64
    for stage in range(4):
        width = 64 * 2**stage
        for block in range(2):
            convolutions: Shapes = [(width, channels, 3, 3), (width, width, 3, 3)]
            if block == 0 and stage > 0:
                convolutions.append((width, channels, 1, 1))
            for convolution in convolutions:
                shapes += [convolution, (width,), (width,)]
            channels = width
    return shapes


CASES = {"lenet": lenet, "resnet18": resnet18}


def gradients(shapes: Shapes, num_tasks: int, dtype: torch.dtype, seed: int = 0) -> list[Tensor]:
    """A task-major list of independent normal gradients: about half of the pairs conflict."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(shape, generator=generator).to(dtype)
        for _ in range(num_tasks)
        for shape in shapes
    ]
