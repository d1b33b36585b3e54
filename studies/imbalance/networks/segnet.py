"""SegNet as the field uses it on NYUv2 and Cityscapes: five poolings down, five unpoolings up.

V. Badrinarayanan, A. Kendall and R. Cipolla, SegNet, TPAMI 2017, with the numbers of layers of the
MTAN release: 24 943 296 parameters in 104 tensors.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

WIDTHS = (64, 128, 256, 512, 512)


def convolution(inputs: int, outputs: int) -> nn.Sequential:
    """3 x 3, batch normalisation and ReLU at the same height and width."""
    layer = start(nn.Conv2d(inputs, outputs, kernel_size=3, padding=1))
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.ReLU())


def start(layer: nn.Conv2d) -> nn.Conv2d:
    """The layer with the release's first weights: Xavier's normal ones, and zero biases."""
    nn.init.xavier_normal_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def extra_convolutions(width: int, level: int) -> nn.Sequential:
    """What follows a level's first convolution: one at the two finest levels, else two."""
    return nn.Sequential(*(convolution(width, width) for _ in range(1 if level < 2 else 2)))


class SegNet(nn.Module):
    """Image (B, 3, H, W) -> features (B, widths[0], H, W); H and W are multiples of 32.

    `levels` gives, beside the features, what attention looks at.
    """

    def __init__(self, widths: Sequence[int] = WIDTHS) -> None:
        super().__init__()
        self.channels = widths[0]
        self.widths = tuple(widths)
        above = (3, *widths[:-1])
        below = (widths[0], *widths[:-1])
        levels = range(len(widths))
        self.encoder_first = nn.ModuleList(convolution(above[i], widths[i]) for i in levels)
        self.encoder_extra = nn.ModuleList(extra_convolutions(widths[i], i) for i in levels)
        self.decoder_first = nn.ModuleList(convolution(widths[i], below[i]) for i in levels)
        self.decoder_extra = nn.ModuleList(extra_convolutions(below[i], i) for i in levels)

    def forward(self, image: Tensor) -> Tensor:
        return self.levels(image)[1][-1][1]

    def levels(
        self, image: Tensor
    ) -> tuple[list[tuple[Tensor, Tensor]], list[tuple[Tensor, Tensor]]]:
        """What enters and what leaves the further convolutions, level by level.

        Downwards from the finest, where the first convolution's output enters; then upwards from
        the coarsest, where the unpooled map is given as entering.
        """
        multiple = 2 ** len(self.widths)
        if image.shape[-2] % multiple or image.shape[-1] % multiple:
            raise ValueError(
                f"SegNet pools {len(self.widths)} times: height and width must be multiples of "
                f"{multiple}, not {tuple(image.shape[-2:])}"
            )
        down, up, places = [], [], []
        found = image
        for first, extra in zip(self.encoder_first, self.encoder_extra, strict=True):
            entering = first(found)
            leaving = extra(entering)
            down.append((entering, leaving))
            found, place = functional.max_pool2d(leaving, 2, return_indices=True)
            places.append(place)
        for level in reversed(range(len(self.widths))):
            entering = functional.max_unpool2d(found, places[level], [2, 2])
            found = self.decoder_extra[level](self.decoder_first[level](entering))
            up.append((entering, found))
        return down, up

    def last_layer(self) -> nn.Module:
        """The last convolution of the finest level."""
        layer: nn.Module = self.decoder_extra[0].get_submodule("0.0")
        return layer
