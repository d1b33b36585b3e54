"""Taskonomy: depth, normals and curvature of buildings, in both layouts of its files.

A. Zamir et al., Taskonomy: Disentangling Task Transfer Learning, CVPR 2018.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from studies.imbalance.data.common import (
    Layout,
    Sample,
    Transform,
    channels_first,
    read_picture,
    read_pixels,
    unit_normals,
    unknown_where,
)
from studies.imbalance.tasks import depth, normals, regression

TREE = """
  {building}_{task}/{task}/point_{p}_view_{v}_domain_{task}.png
  or {task}/taskonomy/{building}/point_{p}_view_{v}_domain_{task}.png
  with {task} one of rgb, depth_zbuffer, normal, principal_curvature; depth in 16 bits
  and a table of a split anywhere: lines "building,point,view" under that heading
"""
FOLDERS = {"depth": "depth_zbuffer", "normals": "normal", "curvature": "principal_curvature"}
UNITS_A_METRE = 512
NO_DEPTH = 65535  # the largest number of 16 bits
CENTRE = 127  # of 8 bits, what stands for zero
ALL_TASKS = {
    "depth": depth("depth"),
    "normals": normals("normals"),
    "curvature": regression("curvature", 2),
}


class Taskonomy(Dataset[Sample]):
    """Images float32 (3, H, W) in [0, 1], and a target a task.

    depth (1, H, W) in metres; normals (3, H, W), unit vectors; curvature (2, H, W), the two
    principal ones as stored, their zero at zero and a step of 8 bits 1/127. A pixel whose depth is
    unknown is unknown in all, whichever are asked for, so the depth files are always read.

    `split` is the path of a table whose rows are the samples: a heading with building, point and
    view, then a line each (more columns do no harm).
    """

    def __init__(
        self,
        root: str | Path,
        split: str | Path,
        tasks: Sequence[str] = tuple(FOLDERS),
        transform: Transform | None = None,
    ) -> None:
        self.layout = Layout("Taskonomy", root, TREE)
        for task in tasks:
            if task not in FOLDERS:
                raise ValueError(f"Taskonomy has no task {task!r} here: choose from {[*FOLDERS]}")
        self.tasks = tuple(ALL_TASKS[task] for task in tasks)
        self.transform = transform
        if not Path(split).is_file():
            raise self.layout.broken(f"there is no table {split}")
        self.views = self.layout.read(Path(split), _read_views)

    def __len__(self) -> int:
        return len(self.views)

    def __getitem__(self, index: int) -> Sample:
        image = self.layout.read(self._file(index, "rgb"), read_picture)
        metres = self.layout.read(self._file(index, FOLDERS["depth"]), _read_depth)
        self._check_size(index, "rgb", image, metres)
        unknown = metres.isnan()
        targets: dict[str, Tensor] = {}
        for task in (task.name for task in self.tasks):
            if task == "depth":
                targets[task] = metres
            else:
                reader = _read_normals if task == "normals" else _read_curvature
                found = self.layout.read(self._file(index, FOLDERS[task]), reader)
                self._check_size(index, FOLDERS[task], found, metres)
                targets[task] = unknown_where(found, unknown)
        sample = (image, targets)
        return sample if self.transform is None else self.transform(sample)

    def _check_size(self, index: int, folder: str, found: Tensor, metres: Tensor) -> None:
        if found.shape[1:] != metres.shape[1:]:
            raise self.layout.broken(f"{self._file(index, folder)} and its depth differ in size")

    def _file(self, index: int, folder: str) -> Path:
        building, point, view = self.views[index]
        name = f"point_{point}_view_{view}_domain_{folder}.png"
        path = self.layout.root / folder / "taskonomy" / building / name
        return path if path.is_file() else self.layout.file(f"{building}_{folder}", folder, name)


def _read_views(path: Path) -> list[tuple[str, int, int]]:
    with path.open(encoding="utf-8", newline="") as file:
        rows = [
            (row["building"], int(row["point"]), int(row["view"])) for row in csv.DictReader(file)
        ]
    if not rows:
        raise ValueError("it lists no view")
    return rows


def _read_depth(path: Path) -> Tensor:
    pixels = read_pixels(path)
    if pixels.dtype not in (np.uint16, np.int32):  # an older pillow reads 16 bits into 32
        raise ValueError(f"a depth of 16 bits was expected, not {pixels.dtype}")
    stored = channels_first(pixels)
    if len(stored) != 1:
        raise ValueError("a depth of 16 bits has one channel")
    return unknown_where(stored / UNITS_A_METRE, stored == NO_DEPTH)


def _read_normals(path: Path) -> Tensor:
    return unit_normals(_centred(path, 3))


def _read_curvature(path: Path) -> Tensor:
    return _centred(path, 2)


def _centred(path: Path, channels: int) -> Tensor:
    """The first channels of an image of 8 bits, with its centre at zero, in [-1, 1.01]."""
    stored = channels_first(read_pixels(path))
    if len(stored) < channels:
        raise ValueError(f"{channels} channels were expected, not {len(stored)}")
    return (stored[:channels] - CENTRE) / CENTRE
