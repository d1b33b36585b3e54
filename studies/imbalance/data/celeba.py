"""CelebA's 40 attributes of faces, in the layout in which the set is distributed."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from studies.imbalance.data.common import Layout, Sample, read_picture
from studies.imbalance.tasks import Task, binary

SPLITS = ("train", "val", "test")
ATTRIBUTES = 40
TREE = """
  Anno/list_attr_celeba.txt        a count, the 40 names, then a line "file -1 1 ..." an image
  Eval/list_eval_partition.txt     a line "file 0" an image: 0 train, 1 val, 2 test
  Img/img_align_celeba/000001.jpg ...
"""


class CelebA(Dataset[Sample]):
    """Faces float32 (3, H, W) in [0, 1], and 40 targets by their attributes' names, each 0 or 1.

    `size` is (H, W): the 64 x 64 of the FAMO code by default. `tasks` holds one binary task an
    attribute, in the file's order. Raises DataFolderError where a list or an image is missing or a
    line of a list is not what the tree says.
    """

    def __init__(
        self, root: str | Path, split: str = "train", size: tuple[int, int] = (64, 64)
    ) -> None:
        self.layout = Layout("CelebA", root, TREE)
        self.size = size
        part = SPLITS.index(self.layout.split(split, SPLITS))
        lists = (
            self.layout.file("Anno", "list_attr_celeba.txt"),
            self.layout.file("Eval", "list_eval_partition.txt"),
        )
        self.names, rows = self.layout.read(lists[0], _attributes)
        parts = self.layout.read(lists[1], _partition)
        if parts.keys() != rows.keys():
            raise self.layout.broken(
                f"{lists[0].name} and {lists[1].name} list different images: "
                f"{min(parts.keys() ^ rows.keys())} stands in one alone"
            )
        self.files = [name for name, place in parts.items() if place == part]
        if not self.files:
            raise self.layout.broken(f"{lists[1]} has no image of {split}")
        self.labels = torch.stack([rows[name] for name in self.files])
        self.tasks: tuple[Task, ...] = tuple(binary(name, dense=False) for name in self.names)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Sample:
        path = self.layout.file("Img", "img_align_celeba", self.files[index])
        image = self.layout.read(path, lambda path: read_picture(path, self.size))
        return image, dict(zip(self.names, self.labels[index].unbind(), strict=True))


def _attributes(path: Path) -> tuple[tuple[str, ...], dict[str, Tensor]]:
    """The names, and the attributes of each image as 0 or 1."""
    count, header, *lines = path.read_text(encoding="utf-8").splitlines()
    names = tuple(header.split())
    if len(names) != ATTRIBUTES:
        raise ValueError(f"line 2 holds {len(names)} names instead of {ATTRIBUTES}")
    if len(set(names)) < ATTRIBUTES:
        raise ValueError("line 2 gives two attributes one name")
    rows: dict[str, Tensor] = {}
    for number, line in enumerate(lines, start=3):
        name, *marks = line.split()
        if len(marks) != ATTRIBUTES or not set(marks) <= {"-1", "1"}:
            raise ValueError(f"line {number} is not a file and {ATTRIBUTES} marks of -1 or 1")
        if name in rows:
            raise ValueError(f"line {number} lists {name} again")
        rows[name] = torch.tensor([float(mark == "1") for mark in marks])
    if len(rows) != int(count):
        raise ValueError(f"line 1 promises {count} images, {len(rows)} follow")
    return names, rows


def _partition(path: Path) -> dict[str, int]:
    parts: dict[str, int] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        name, *part = line.split()
        if part not in (["0"], ["1"], ["2"]):
            raise ValueError(f"line {number} is not a file and a part of 0, 1 or 2")
        if name in parts:
            raise ValueError(f"line {number} lists {name} again")
        parts[name] = int(part[0])
    return parts
