"""Yeast: 14 functions of 2417 genes, from the file inside the river wheel.

A. Elisseeff and J. Weston, A kernel method for multi-labelled classification, NIPS 2001; the file
is MULAN's version. `pip install river`, or `pip install 'mtlkernels[data]'`, brings it without any
download of data; the file is read directly and river is not imported.
"""

from __future__ import annotations

import csv
import gzip
import importlib.util
import zlib
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from studies.imbalance.data.common import DataFolderError, Sample
from studies.imbalance.tasks import binary

FEATURES = tuple(f"Att{i}" for i in range(1, 104))
LABELS = tuple(f"Class{i}" for i in range(1, 15))
TASKS = tuple(binary(name, dense=False) for name in LABELS)
TEST_ROWS = 917  # of 2417, as in the publication
SEED = 0


class Yeast(Dataset[Sample]):
    """Features (103,), and 14 targets by the names of their classes, each 0 or 1.

    `split` is "train" or "test": 1500 and 917 genes, the publication's numbers, drawn anew with a
    seed, because the file's order is not known to be that of the publication. Features have zero
    mean and unit deviation over the training genes. `path` names another copy of the file.
    """

    def __init__(self, split: str = "train", path: str | Path | None = None) -> None:
        if split not in ("train", "test"):
            raise ValueError(f"Yeast has no split {split!r}: choose 'train' or 'test'")
        features, labels = read_yeast(river_file() if path is None else Path(path))
        order = torch.randperm(len(features), generator=torch.Generator().manual_seed(SEED))
        held_out = len(order) * TEST_ROWS // 2417
        train, test = order[held_out:], order[:held_out]
        deviation, mean = torch.std_mean(features[train], dim=0)
        chosen = train if split == "train" else test
        self.features = ((features - mean) / deviation.clamp(min=1e-6))[chosen]
        self.labels = labels[chosen]
        self.tasks = TASKS

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, index: int) -> Sample:
        return self.features[index], dict(zip(LABELS, self.labels[index].unbind(), strict=True))


def river_file() -> Path:
    """Where the installed river keeps the file; raises DataFolderError where it is not."""
    found = importlib.util.find_spec("river")
    places = [] if found is None else found.submodule_search_locations or []
    for place in places:
        path = Path(place) / "datasets" / "yeast.csv.gz"
        if path.is_file():
            return path
    raise DataFolderError(
        "Yeast: the package river, which holds the file, is not installed or is too old: "
        "pip install 'river>=0.26'. Expected:\nriver/\n  datasets/yeast.csv.gz\n"
    )


def read_yeast(path: Path) -> tuple[Tensor, Tensor]:
    """Features (N, 103) and labels (N, 14), float32; raises DataFolderError where it is broken."""
    try:
        with gzip.open(path, "rt", newline="") as file:
            header, *rows = csv.reader(file)
        if tuple(header) != FEATURES + LABELS:
            raise ValueError("the columns are not Att1 to Att103 and Class1 to Class14")
        for line, row in enumerate(rows, start=2):
            if len(row) != len(header):
                raise ValueError(f"line {line} has {len(row)} columns instead of {len(header)}")
        table = torch.tensor([[float(number) for number in row] for row in rows])
        if not table.isfinite().all():
            raise ValueError("a number is not finite")
        labels = table[:, len(FEATURES) :]
        if not ((labels == 0) | (labels == 1)).all():
            raise ValueError("a class is neither 0 nor 1")
    except (OSError, EOFError, ValueError, IndexError, csv.Error, zlib.error) as error:
        raise DataFolderError(
            f"Yeast: {path} cannot be read ({error}). Expected: a gzipped table with the columns "
            "Att1 to Att103 and Class1 to Class14, a gene a line"
        ) from error
    return table[:, : len(FEATURES)], labels
