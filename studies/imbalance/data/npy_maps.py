"""The layout of .npy files in which the field shares its preprocessed NYUv2 and Cityscapes.

`root/{train,val}/{image,...}/{i}.npy`, i = 0, 1, ..., channels last: as published with MTAN
(S. Liu, E. Johns and A. Davison, End-to-End Multi-Task Learning with Attention, CVPR 2019).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from studies.imbalance.data.common import (
    Layout,
    Sample,
    Transform,
    channels_first,
    class_map,
    unit_normals,
    unknown_where,
)

SPLITS = ("train", "val")
ROUNDING = 1e-4
"""How far an image may leave [0, 1]: resizing in float32 does, by less."""


@dataclass(frozen=True)
class Map:
    """One task's files: their folder, and how an array becomes a target.

    `kind` is "classes" for whole numbers below `classes`, "positive" for a map whose numbers up to
    0 (or NaN) are unknown, "normals" for unit vectors, unknown where they are zero.
    """

    folder: str
    kind: str
    classes: int = 0

    def target(self, array: np.ndarray[Any, Any]) -> Tensor:
        if self.kind == "classes":
            one_channel = array.ndim == 3 and array.shape[2] == 1
            return class_map(array[..., 0] if one_channel else array, self.classes)
        values = channels_first(array)
        if values.isinf().any():
            raise ValueError("a number is infinite; 0 is the mark of what is unknown")
        if self.kind == "normals":
            if len(values) != 3:
                raise ValueError(f"a normal has 3 components, not {len(values)}")
            return unit_normals(values)
        if len(values) != 1:
            raise ValueError(f"a map of {self.folder} has 1 channel, not {len(values)}")
        return unknown_where(values, ~(values > 0))


class NpyMaps(Dataset[Sample]):
    """Images float32 (3, H, W) in [0, 1], and one target a map; see the package for their marks.

    Files are counted when the set is made and read when a sample is taken. Raises DataFolderError
    where a folder or a number is missing, where an array cannot be read or is not what the tree
    says, and where a map and its image differ in height or width.
    """

    def __init__(
        self, layout: Layout, split: str, maps: Mapping[str, Map], transform: Transform | None
    ) -> None:
        self.layout = layout
        self.split = layout.split(split, SPLITS)
        self.maps = dict(maps)
        self.transform = transform
        self.count = len(self._numbers("image"))
        for found in self.maps.values():
            if len(self._numbers(found.folder)) != self.count:
                raise layout.broken(
                    f"{layout.root / split} holds {self.count} images but "
                    f"{len(self._numbers(found.folder))} files in {found.folder}"
                )

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        if not -self.count <= index < self.count:
            raise IndexError(f"sample {index} of {self.count}")
        index %= self.count
        image = self._load("image", index, _image)
        targets = {
            task: self._load(found.folder, index, found.target) for task, found in self.maps.items()
        }
        for task, target in targets.items():
            if target.shape[-2:] != image.shape[-2:]:
                raise self.layout.broken(
                    f"{task} {index} of {self.split} has {tuple(target.shape[-2:])} pixels, "
                    f"its image {tuple(image.shape[-2:])}"
                )
        sample = (image, targets)
        return sample if self.transform is None else self.transform(sample)

    def _numbers(self, folder: str) -> list[int]:
        """The numbers of the files in a folder, which run from 0 without a gap."""
        place = self.layout.root / self.split / folder
        if not place.is_dir():
            raise self.layout.broken(f"there is no folder {place}")
        names = [path.stem for path in place.glob("*.npy")]
        numbered = [name for name in names if name.isdecimal()]
        if odd := [name for name in numbered if name != str(int(name))]:
            raise self.layout.broken(
                f"{place / min(odd)}.npy is not numbered like 0.npy, 1.npy, ...: "
                "rename or remove it"
            )
        numbers = sorted(map(int, numbered))
        if not numbers:
            raise self.layout.broken(f"{place} holds no numbered .npy file")
        if numbers[-1] != len(numbers) - 1:
            missing = next(i for i in range(len(numbers)) if numbers[i] != i)
            raise self.layout.broken(f"{place / f'{missing}.npy'} is missing")
        return numbers

    def _load(self, folder: str, index: int, convert: Any) -> Tensor:
        path = self.layout.root / self.split / folder / f"{index}.npy"
        return self.layout.read(path, partial(_converted, convert=convert))


def _image(array: np.ndarray[Any, Any]) -> Tensor:
    values = channels_first(array)
    if len(values) != 3:
        raise ValueError(f"an image has 3 channels, not {len(values)}")
    low, high = values.min().item(), values.max().item()
    if not (low >= -ROUNDING and high <= 1 + ROUNDING):
        raise ValueError(f"an image lies in [0, 1], not in [{low:g}, {high:g}]")
    return values


def _converted(path: Path, convert: Any) -> Tensor:
    return convert(np.load(path, allow_pickle=False))
