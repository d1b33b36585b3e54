"""ResNet-18 and ResNet-50 without their classifier.

K. He, X. Zhang, S. Ren and J. Sun, Deep Residual Learning for Image Recognition, CVPR 2016. The
stride of a bottleneck stands at its 3 x 3 convolution, and names are those of torchvision, so its
checkpoints load once `fc` is taken out.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class Residual(nn.Module):
    """What a block adds to is its input, projected where the shape changes."""

    expansion = 1

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                _convolution(inputs, outputs, kernel=1, stride=stride), nn.BatchNorm2d(outputs)
            )

    def forward(self, features: Tensor) -> Tensor:
        kept = features if self.downsample is None else self.downsample(features)
        added: Tensor = self.relu(self.change(features) + kept)
        return added

    def change(self, features: Tensor) -> Tensor:
        raise NotImplementedError

    def last_layer(self) -> nn.Module:
        raise NotImplementedError


class Basic(Residual):
    """Two 3 x 3 convolutions."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__(inputs, width, stride)
        self.conv1 = _convolution(inputs, width, kernel=3, stride=stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _convolution(width, width, kernel=3)
        self.bn2 = nn.BatchNorm2d(width)

    def change(self, features: Tensor) -> Tensor:
        changed: Tensor = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(features)))))
        return changed

    def last_layer(self) -> nn.Module:
        return self.conv2


class Bottleneck(Residual):
    """1 x 1 to a quarter of the channels, 3 x 3, and 1 x 1 back."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__(inputs, 4 * width, stride)
        self.conv1 = _convolution(inputs, width, kernel=1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _convolution(width, width, kernel=3, stride=stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = _convolution(width, 4 * width, kernel=1)
        self.bn3 = nn.BatchNorm2d(4 * width)

    def change(self, features: Tensor) -> Tensor:
        changed = self.relu(self.bn1(self.conv1(features)))
        changed = self.relu(self.bn2(self.conv2(changed)))
        result: Tensor = self.bn3(self.conv3(changed))
        return result

    def last_layer(self) -> nn.Module:
        return self.conv3


class ResNet(nn.Module):
    """Image (B, 3, H, W) -> features (B, channels, ceil(H/32), ceil(W/32))."""

    def __init__(
        self, block: type[Basic] | type[Bottleneck], blocks: Sequence[int], width: int = 64
    ) -> None:
        super().__init__()
        self.conv1 = _convolution(3, width, kernel=7, stride=2)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        self.stages: list[str] = []
        inputs = width
        for stage, count in enumerate(blocks):
            made = []
            for number in range(count):
                stride = 2 if stage > 0 and number == 0 else 1
                made.append(block(inputs, width * 2**stage, stride))
                inputs = width * 2**stage * block.expansion
            self.stages.append(f"layer{stage + 1}")
            self.add_module(self.stages[-1], nn.Sequential(*made))
        self.channels = inputs

    def forward(self, image: Tensor) -> Tensor:
        features: Tensor = self.maxpool(self.relu(self.bn1(self.conv1(image))))
        for stage in self.stages:
            features = self.get_submodule(stage)(features)
        return features

    def last_layer(self) -> nn.Module:
        """The last convolution."""
        *_, last = self.get_submodule(self.stages[-1]).children()
        assert isinstance(last, Residual)
        return last.last_layer()


def resnet18() -> ResNet:
    """512 channels; 11 176 512 parameters in 60 tensors."""
    return ResNet(Basic, (2, 2, 2, 2))


def resnet50() -> ResNet:
    """2048 channels; 23 508 032 parameters in 159 tensors."""
    return ResNet(Bottleneck, (3, 4, 6, 3))


def _convolution(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    layer = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return layer
