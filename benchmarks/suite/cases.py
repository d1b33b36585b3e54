"""Parameter shapes of real models, and gradients of those shapes.

Shapes stand in the order of the parameters; totals are those of the published models.
"""

from __future__ import annotations

import itertools
import math

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


def resnet50() -> Shapes:
    """ResNet-50 without its classifier: bottlenecks of 1x1, 3x3 and 1x1 convolutions."""
    shapes: Shapes = [(64, 3, 7, 7), (64,), (64,)]
    channels = 64
    for stage, blocks in enumerate((3, 4, 6, 3)):
        width = 64 * 2**stage
        for block in range(blocks):
            convolutions: Shapes = [(width, channels, 1, 1), (width, width, 3, 3)]
            convolutions.append((4 * width, width, 1, 1))
            if block == 0:
                convolutions.append((4 * width, channels, 1, 1))
            for convolution in convolutions:
                shapes += [convolution, convolution[:1], convolution[:1]]
            channels = 4 * width
    return shapes


def _perceptron(*widths: int) -> Shapes:
    return [shape for i, o in itertools.pairwise(widths) for shape in ((o, i), (o,))]


def pinn() -> Shapes:
    """A physics-informed network, five hidden layers of 50: 12 tensors, 10 401 elements."""
    return _perceptron(2, 50, 50, 50, 50, 50, 1)


def qm9() -> Shapes:
    """A message-passing network for molecules, 64 wide, as trained on QM9's eleven properties."""
    d = 64
    edges = [*_perceptron(5, 2 * d, d * d), (d, d), (d,)]
    recurrent: Shapes = [(3 * d, d), (3 * d, d), (3 * d,), (3 * d,)]
    readout: Shapes = [(4 * d, 2 * d), (4 * d, d), (4 * d,), (4 * d,)]
    return [*_perceptron(11, d), *edges, *recurrent, *readout, *_perceptron(2 * d, d)]


def mmoe() -> Shapes:
    """Eight experts of a ranking model, 1024-1024-512 each: 32 tensors, 12 595 200 elements."""
    return 8 * _perceptron(1024, 1024, 512)


def _vit(d: int, layers: int) -> Shapes:
    layer: Shapes = [(d,), (d,), (3 * d, d), (3 * d,), (d, d), (d,)]
    layer += [(d,), (d,), (4 * d, d), (4 * d,), (d, 4 * d), (d,)]
    return [(1, 1, d), (1, 197, d), (d, 3, 16, 16), (d,), *(layers * layer), (d,), (d,)]


def vit_b() -> Shapes:
    """ViT-B/16 at 224 pixels without its classifier: 85 798 656 elements."""
    return _vit(768, 12)


def vit_l() -> Shapes:
    """ViT-L/16 at 224 pixels without its classifier: 303 301 632 elements."""
    return _vit(1024, 24)


def segnet_mtan() -> Shapes:
    """Encoder and decoder of the SegNet that MTAN's attention modules (arXiv 1803.10704) sit on."""
    widths = (64, 128, 256, 512, 512)
    steps = list(itertools.pairwise(widths))
    deeper: list[tuple[int, int]] = []  # the further convolutions of a stage, one or two
    for stage, width in enumerate(widths[1:]):
        deeper += [(width, width)] * (1 if stage == 0 else 2)
    upward: list[tuple[int, int]] = []
    for stage, width in enumerate(widths[:4]):
        upward += [(width, width)] * (1 if stage == 0 else 2)
    convolutions = [(3, 64), *steps, (64, 64), *deeper]
    convolutions += [(64, 64), *((b, a) for a, b in steps), (64, 64), *upward]
    shapes: Shapes = []
    for i, o in convolutions:
        shapes += [(o, i, 3, 3), (o,), (o,), (o,)]
    return shapes


def lora() -> Shapes:
    """Rank-16 adapters of all linear layers of an 8-billion-parameter Llama 3."""
    d, narrow, wide, rank = 4096, 1024, 14336, 16
    layer: Shapes = []
    for o, i in ((d, d), (narrow, d), (narrow, d), (d, d), (wide, d), (wide, d), (d, wide)):
        layer += [(rank, i), (o, rank)]
    return 32 * layer


def llama_1b() -> Shapes:
    """Llama 3.2 with a billion parameters, tied embeddings: 1 235 814 400 elements."""
    d, narrow, wide = 2048, 512, 8192
    layer: Shapes = [(d, d), (narrow, d), (narrow, d), (d, d), (wide, d), (wide, d), (d, wide)]
    return [(128256, d), *(16 * [*layer, (d,), (d,)]), (d,)]


CASES = {
    "pinn": pinn,
    "lenet": lenet,
    "qm9": qm9,
    "resnet18": resnet18,
    "mmoe": mmoe,
    "resnet50": resnet50,
    "segnet_mtan": segnet_mtan,
    "lora": lora,
    "vit_b": vit_b,
    "vit_l": vit_l,
    "llama_1b": llama_1b,
}


def numel(shapes: Shapes) -> int:
    """Elements of all parameters."""
    return sum(math.prod(shape) for shape in shapes)


def gradients(shapes: Shapes, num_tasks: int, dtype: torch.dtype, seed: int = 0) -> list[Tensor]:
    """A task-major list of independent normal gradients: about half of the pairs conflict."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(shape, generator=generator).to(dtype)
        for _ in range(num_tasks)
        for shape in shapes
    ]
