"""The augmentation of the published NYUv2 runs, and other sizes: what must change with pixels.

Classes, depth and every other map take the nearest pixel, images and normals the mean of
neighbours; a normal that has an unknown neighbour becomes unknown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from studies.imbalance.data.common import Sample, unit_normals

POWERS = {"depth": -1.0, "disparity": 1.0}


class ScaleCropFlip:
    """A random crop, enlarged by one of `scales` to the full size, and a flip every second time.

    Things enlarged s times are s times nearer: a target named in `powers` is multiplied by s to
    its power, so depth is divided and disparity multiplied. The published Cityscapes code divides
    disparity too: `powers={"disparity": -1}` does as it does. A flip negates the x of "normals".

    Random numbers come from `generator`, or torch's own, which differs between loader workers.
    """

    def __init__(
        self,
        scales: Sequence[float] = (1.0, 1.2, 1.5),
        powers: Mapping[str, float] = POWERS,
        generator: torch.Generator | None = None,
    ) -> None:
        if not scales or min(scales) < 1:
            raise ValueError(f"scales are numbers of at least 1, not {scales}")
        self.scales = tuple(scales)
        self.powers = dict(powers)
        self.generator = generator

    def __call__(self, sample: Sample) -> Sample:
        height, width = sample[0].shape[-2:]
        scale = self.scales[self._below(len(self.scales))]
        rows, columns = int(height / scale), int(width / scale)
        top, left = self._below(height - rows + 1), self._below(width - columns + 1)
        sample = crop(sample, top, left, rows, columns)
        image, targets = resize(sample, height, width)
        for task, power in self.powers.items():
            if task in targets:
                targets[task] = targets[task] * scale**power
        return flip((image, targets)) if self._below(2) else (image, targets)

    def _below(self, bound: int) -> int:
        return int(torch.randint(bound, (), generator=self.generator))


class Resize:
    """Every sample at one size, so that images of many sizes make batches."""

    def __init__(self, height: int, width: int) -> None:
        self.height, self.width = height, width

    def __call__(self, sample: Sample) -> Sample:
        return resize(sample, self.height, self.width)


def crop(sample: Sample, top: int, left: int, rows: int, columns: int) -> Sample:
    """The same window of the image and of every target."""
    image, targets = sample
    window = (..., slice(top, top + rows), slice(left, left + columns))
    return image[window], {task: target[window] for task, target in targets.items()}


def flip(sample: Sample) -> Sample:
    """The mirror image, in which normals point the other way along x."""
    image, targets = sample
    mirrored = {task: target.flip(-1) for task, target in targets.items()}
    if "normals" in mirrored:
        mirrored["normals"] = mirrored["normals"] * torch.tensor([-1.0, 1.0, 1.0])[:, None, None]
    return image.flip(-1), mirrored


def resize(sample: Sample, height: int, width: int) -> Sample:
    """The image and every target at `height` x `width`; nothing is touched that has that size."""
    image, targets = sample
    return _smooth(image, height, width), {
        task: unit_normals(_smooth(target, height, width))
        if task == "normals"
        else nearest(target, height, width)
        for task, target in targets.items()
    }


def nearest(target: Tensor, height: int, width: int) -> Tensor:
    """(..., H, W) of any dtype -> (..., height, width), each pixel one of the given."""
    rows, columns = target.shape[-2:]
    if (rows, columns) == (height, width):
        return target
    row = torch.arange(height) * rows // height
    column = torch.arange(width) * columns // width
    return target[..., row[:, None], column]


def _smooth(image: Tensor, height: int, width: int) -> Tensor:
    if image.shape[-2:] == (height, width):
        return image
    return functional.interpolate(
        image[None], size=(height, width), mode="bilinear", align_corners=True
    )[0]
