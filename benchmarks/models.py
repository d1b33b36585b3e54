"""Multi-task models with something to train on: what a step's time is measured with.

Inputs and targets are random: a step does the same work whatever they hold. Sizes are small enough
for two cores; a larger batch makes backwards dearer and leaves the cost of what follows them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from examples.demo.models import DenseEncoder, MultiTask, dense_head, digit_head, lenet_encoder

CLASSES = 10


@dataclass(frozen=True)
class Workload:
    """A model, one batch and T losses on it.

    Attributes:
        model: encoder and heads.
        inputs: one batch.
        targets: T targets.
        loss: what a prediction and its target give.
    """

    model: MultiTask
    inputs: Tensor
    targets: list[Tensor]
    loss: Callable[[Tensor, Tensor], Tensor]

    @property
    def shared(self) -> list[nn.Parameter]:
        return list(self.model.encoder.parameters())

    @property
    def last_layer(self) -> list[nn.Parameter]:
        """The weights of the last shared layer that multiplies by a matrix."""
        return [param for param in self.shared if param.dim() > 1][-1:]

    def features(self) -> Tensor:
        return self.model.encoder(self.inputs)

    def losses_of(self, features: list[Tensor]) -> list[Tensor]:
        """T losses; each head reads its own entry of `features`."""
        heads = self.model.heads.values()
        return [
            self.loss(head(z), target)
            for head, z, target in zip(heads, features, self.targets, strict=True)
        ]

    def losses(self) -> list[Tensor]:
        return self.losses_of([self.features()] * len(self.targets))

    def to(self, device: torch.device) -> Workload:
        return Workload(
            self.model.to(device),
            self.inputs.to(device),
            [target.to(device) for target in self.targets],
            self.loss,
        )


class Block(nn.Module):
    """ResNet's basic block: two 3x3 convolutions beside the identity."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = _convolution(inputs, outputs, 3, stride)
        self.second = _convolution(outputs, outputs, 3, 1)
        same = inputs == outputs and stride == 1
        self.beside = nn.Identity() if same else _convolution(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.second(functional.relu(self.first(x))) + self.beside(x))


class Positions(nn.Module):
    """Tokens (B, S, D) -> (B, S + 1, D): a class token in front, and where each one stands."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.place = nn.Parameter(0.02 * torch.randn(1, tokens + 1, width))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((self.token.expand(len(x), -1, -1), x), dim=1) + self.place


class Attention(nn.Module):
    """Self-attention of tokens (B, S, D)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.project = nn.Linear(width, 3 * width)
        self.merge = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.project(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.merge(
            functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        )


class Layer(nn.Module):
    """A pre-norm transformer layer."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attend = nn.Sequential(nn.LayerNorm(width), Attention(width, heads))
        self.think = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, 4 * width),
            nn.GELU(),
            nn.Linear(4 * width, width),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attend(x)
        return x + self.think(x)


class ViT(nn.Module):
    """Image (B, 3, side, side) -> class token (B, width)."""

    def __init__(self, side: int, patch: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, stride=patch)
        self.positions = Positions((side // patch) ** 2, width)
        self.layers = nn.Sequential(*(Layer(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)

    def forward(self, image: Tensor) -> Tensor:
        tokens = self.positions(self.patches(image).flatten(2).transpose(1, 2))
        return self.norm(self.layers(tokens)[:, 0])


def _convolution(inputs: int, outputs: int, kernel: int, stride: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
    )


def resnet18_encoder(first: int = 64) -> nn.Module:
    """Image (B, 3, H, W) -> features (B, 8 first): ResNet-18 without its classifier."""
    blocks: list[nn.Module] = []
    channels = first
    for stage in range(4):
        for block in range(2):
            width, stride = first * 2**stage, 2 if stage > 0 and block == 0 else 1
            blocks.append(Block(channels, width, stride))
            channels = width
    return nn.Sequential(
        nn.Conv2d(3, first, 7, stride=2, padding=3, bias=False),
        nn.BatchNorm2d(first),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=2, padding=1),
        *blocks,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


def mlp_encoder() -> nn.Module:
    """(B, 256) -> (B, 256) through four layers of 256."""
    layers = [layer for _ in range(4) for layer in (nn.Linear(256, 256), nn.ReLU())]
    return nn.Sequential(*layers)


def _classifiers(
    encoder: nn.Module, head: Callable[[], nn.Module], inputs: Tensor, tasks: int
) -> Workload:
    return Workload(
        MultiTask(encoder, {f"task{t}": head() for t in range(tasks)}),
        inputs,
        [torch.randint(CLASSES, (len(inputs),)) for _ in range(tasks)],
        functional.cross_entropy,
    )


def demo(tasks: int) -> Workload:
    """The demo's network for dense maps: 4 crops of 112 x 112, a map of one channel a task."""
    heads = {f"task{t}": dense_head(1) for t in range(tasks)}
    return Workload(
        MultiTask(DenseEncoder(4), heads),
        torch.randn(4, 4, 112, 112),
        [torch.randn(4, 1, 112, 112) for _ in range(tasks)],
        functional.l1_loss,
    )


def lenet(tasks: int) -> Workload:
    """The demo's network for two digits: 128 images of 28 x 28."""
    return _classifiers(lenet_encoder(), digit_head, torch.randn(128, 1, 28, 28), tasks)


def resnet18(tasks: int) -> Workload:
    """ResNet-18, batch normalisation included: 4 images of 64 x 64."""
    return _classifiers(
        resnet18_encoder(), lambda: nn.Linear(512, CLASSES), torch.randn(4, 3, 64, 64), tasks
    )


def vit(tasks: int) -> Workload:
    """6 layers of 192 with 3 heads on patches of 8 x 8: 4 images of 64 x 64, 65 tokens each."""
    encoder = ViT(side=64, patch=8, width=192, depth=6, heads=3)
    return _classifiers(encoder, lambda: nn.Linear(192, CLASSES), torch.randn(4, 3, 64, 64), tasks)


def mlp(tasks: int) -> Workload:
    """Four layers of 256 with ReLU: 256 rows."""
    return _classifiers(
        mlp_encoder(), lambda: nn.Linear(256, CLASSES), torch.randn(256, 256), tasks
    )


class Towers(nn.Module):
    """A recommender's trunk: ids (B, F) -> (B, width), an embedding a field and a perceptron."""

    def __init__(self, fields: int, rows: int, size: int, width: int) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(rows, size) for _ in range(fields))
        self.first, self.second = nn.Linear(fields * size, width), nn.Linear(width, width)

    def forward(self, ids: Tensor) -> Tensor:
        found = [table(ids[:, f]) for f, table in enumerate(self.tables)]
        hidden = functional.relu(self.first(torch.cat(found, dim=1)))
        return functional.relu(self.second(hidden))


def _regressors(encoder: nn.Module, width: int, inputs: Tensor, tasks: int) -> Workload:
    return Workload(
        MultiTask(encoder, {f"task{t}": nn.Linear(width, 1) for t in range(tasks)}),
        inputs,
        [torch.randn(len(inputs), 1) for _ in range(tasks)],
        functional.mse_loss,
    )


def _perceptron(first: int, width: int, depth: int) -> nn.Module:
    widths = [first, *[width] * depth]
    return nn.Sequential(
        *(m for i, o in itertools.pairwise(widths) for m in (nn.Linear(i, o), nn.Tanh()))
    )


def narrow(tasks: int) -> Workload:
    """5 layers of 50, as in a physics-informed network: 64 points."""
    return _regressors(_perceptron(2, 50, 5), 50, torch.randn(64, 2), tasks)


def deep(tasks: int) -> Workload:
    """60 layers of 16: 8 rows."""
    return _regressors(_perceptron(16, 16, 60), 16, torch.randn(8, 16), tasks)


def wide(tasks: int) -> Workload:
    """6 layers of 1024: 64 rows."""
    return _regressors(_perceptron(1024, 1024, 6), 1024, torch.randn(64, 1024), tasks)


def resnet18_narrow(tasks: int) -> Workload:
    """ResNet-18 of an eighth of the width: 8 images of 32 x 32."""
    return _classifiers(
        resnet18_encoder(8), lambda: nn.Linear(64, CLASSES), torch.randn(8, 3, 32, 32), tasks
    )


def vit_small(tasks: int) -> Workload:
    """4 layers of 64 with 2 heads on patches of 8 x 8: 4 images of 32 x 32, 17 tokens each."""
    encoder = ViT(side=32, patch=8, width=64, depth=4, heads=2)
    return _classifiers(encoder, lambda: nn.Linear(64, CLASSES), torch.randn(4, 3, 32, 32), tasks)


def recommender(tasks: int) -> Workload:
    """16 fields of 1000 ids, embedded in 16 numbers, two layers of 256, a tower a task: 64 rows."""
    heads = {
        f"task{t}": nn.Sequential(nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 1))
        for t in range(tasks)
    }
    return Workload(
        MultiTask(Towers(16, 1000, 16, 256), heads),
        torch.randint(1000, (64, 16)),
        [torch.randint(2, (64, 1)).float() for _ in range(tasks)],
        functional.binary_cross_entropy_with_logits,
    )


MODELS: dict[str, Callable[[int], Workload]] = {
    "demo": demo,
    "lenet": lenet,
    "resnet18": resnet18,
    "vit": vit,
    "mlp": mlp,
    "narrow": narrow,
    "deep": deep,
    "wide": wide,
    "resnet18_narrow": resnet18_narrow,
    "vit_small": vit_small,
    "recommender": recommender,
}
