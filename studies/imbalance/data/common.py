"""What the data sets share: samples, complaints that show the expected tree, images as tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from mtlkernels import extras as packages

IGNORE = -1
"""The class of a pixel without one."""

Sample: TypeAlias = tuple[Tensor, dict[str, Tensor]]
Transform: TypeAlias = Callable[[Sample], Sample]


class DataFolderError(RuntimeError):
    """A data folder is missing, incomplete or holds what cannot be read."""


class Layout:
    """A data set's root folder and the tree that it should hold, for complaints.

    `tree` is drawn below the root as it stands, a path a line.
    """

    def __init__(self, data_set: str, root: str | Path, tree: str) -> None:
        self.data_set = data_set
        self.root = Path(root).expanduser()
        self.tree = tree.strip("\n")
        if not self.root.is_dir():
            raise self.broken(f"there is no folder {self.root}")

    def broken(self, problem: str) -> DataFolderError:
        """The error to raise: the problem, then the tree."""
        return DataFolderError(
            f"{self.data_set}: {problem}. Expected:\n{self.root}/\n{self.tree}\n"
        )

    def file(self, *parts: str) -> Path:
        """The path of a file below the root; raises DataFolderError where there is none."""
        path = self.root.joinpath(*parts)
        if not path.is_file():
            raise self.broken(f"{path} is missing")
        return path

    def read(self, path: Path, reader: Callable[[Path], Any]) -> Any:
        """`reader(path)`; whatever it fails on is told as a broken folder.

        Readers of images, arrays and tables fail on broken files with errors of many kinds.
        """
        try:
            return reader(path)
        except packages.MissingPackageError:
            raise
        except Exception as error:
            raise self.broken(f"{path} cannot be read ({error})") from error

    def split(self, name: str, known: Sequence[str]) -> str:
        """`name` if it is one of the `known` splits; raises ValueError otherwise."""
        if name not in known:
            raise ValueError(f"{self.data_set} has no split {name!r}: choose from {known}")
        return name


def data_package(module: str) -> ModuleType:
    """An optional module, imported; MissingPackageError tells the command that installs it."""
    return packages.require(module, user="this data set", extra="data")


def read_pixels(path: Path, size: tuple[int, int] | None = None) -> np.ndarray[Any, Any]:
    """An image file's numbers as stored, (H, W) or (H, W, C); of palette images, the indices.

    `size` is (H, W), to which the image is resized, smoothly.
    """
    image_module = data_package("PIL.Image")
    with image_module.open(path) as image:
        if size is None:
            return np.array(image)
        return np.array(image.resize(size[::-1], image_module.Resampling.BILINEAR))


def read_picture(path: Path, size: tuple[int, int] | None = None) -> Tensor:
    """A picture of 8 bits as float32 (3, H, W) in [0, 1]; a grey one has equal channels."""
    pixels = read_pixels(path, size)
    if pixels.dtype != np.uint8:
        raise ValueError(f"a picture of 8 bits was expected, not {pixels.dtype}")
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[..., None], 3, axis=2)
    return channels_first(pixels[..., :3]) / 255


def channels_first(pixels: np.ndarray[Any, Any]) -> Tensor:
    """(H, W, C), or (H, W) as one channel -> float32 (C, H, W)."""
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim != 3:
        raise ValueError(f"height, width and channels were expected, not the shape {pixels.shape}")
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(pixels, -1, 0), dtype=np.float32))


def class_map(pixels: np.ndarray[Any, Any], classes: int, ignored: int = IGNORE) -> Tensor:
    """Whole numbers (H, W) in [0, classes) -> int64 (H, W), with -1 where they are `ignored`.

    Raises ValueError on any other number: labels of another set of classes are no ignored ones.
    """
    if pixels.ndim != 2:
        raise ValueError(f"a map of classes has height and width, not the shape {pixels.shape}")
    stored = torch.from_numpy(np.asarray(pixels, dtype=np.float64))
    labels = torch.where(stored == ignored, IGNORE, stored.nan_to_num(nan=torch.inf))
    wrong = (labels != IGNORE) & ((labels < 0) | (labels >= classes) | (labels != labels.round()))
    if wrong.any():
        raise ValueError(
            f"a map of classes holds {stored[wrong][0].item():g}, which is neither a whole number "
            f"from 0 to {classes - 1} nor {ignored}, the mark of no class"
        )
    return labels.long()


def unknown_where(maps: Tensor, unknown: Tensor) -> Tensor:
    """`maps` (C, H, W) with NaN in all channels where `unknown` (H, W) or (1, H, W)."""
    return maps.masked_fill(unknown, torch.nan)


def unit_normals(vectors: Tensor) -> Tensor:
    """Vectors (3, H, W) at unit length, NaN where a vector is too short to have a direction."""
    length = vectors.norm(dim=0, keepdim=True)
    return unknown_where(vectors / length.clamp(min=1e-6), ~(length > 0.1))
