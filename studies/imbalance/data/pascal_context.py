"""PASCAL-Context with five tasks, in the layout of the ASTMT release, `PASCAL_MT`.

K.-K. Maninis, I. Radosavovic and I. Kokkinos, Attentive Single-Tasking of Multiple Tasks, CVPR
2019. Saliency and normals there are predictions of other networks ("distilled").
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from studies.imbalance.data.augment import nearest
from studies.imbalance.data.common import (
    IGNORE,
    Layout,
    Sample,
    Transform,
    channels_first,
    class_map,
    data_package,
    read_picture,
    read_pixels,
    unit_normals,
    unknown_where,
)
from studies.imbalance.tasks import binary, normals, segmentation

SPLITS = ("train", "val")
CLASSES = 21  # of VOC, with the background
PERSON = 15
TREE = """
  ImageSets/Context/{train,val}.txt       a name a line; 4998 and 5105 names
  JPEGImages/2008_000002.jpg ...
  semseg/VOC12/2008_000002.png ...        classes 0 to 20, 255 where there is none; what is
                                          missing there in semseg/pascal-context/
  human_parts/2008_000002.mat ...         anno.objects with class_ind, mask and parts
  sal_distill/2008_000002.png ...         above 127: salient
  pascal-context/trainval/2008_000002.mat ...   LabelMap, 459 classes; its borders are the edges
  normals_distill/2008_000002.png ...     (x + 1) / 2 of unit vectors, in 8 bits
"""
TASKS = (
    segmentation("segmentation", CLASSES),
    segmentation("parts", 7),
    binary("saliency", dense=True),
    binary("edges", dense=True, positive_weight=0.95),
    normals("normals"),
)

PARTS = {
    **dict.fromkeys(("hair", "head", "lear", "lebrow", "leye", "mouth", "nose", "rear"), 1),
    **dict.fromkeys(("rebrow", "reye"), 1),
    **dict.fromkeys(("neck", "torso"), 2),
    **dict.fromkeys(("luarm", "ruarm"), 3),
    **dict.fromkeys(("lhand", "llarm", "rhand", "rlarm"), 4),
    **dict.fromkeys(("luleg", "ruleg"), 5),
    **dict.fromkeys(("lfoot", "llleg", "rfoot", "rlleg"), 6),
}
"""The 24 annotated parts of a person as 6: head, torso, upper and lower arms, upper and lower legs.

0 is what is no part."""

# The normals come from a network trained indoors (NYUv2) and count where the pixel's class, of the
# 459, bears the name of a class of NYUv2, or is tvmonitor.
NORMAL_CLASSES = (
    *(3, 4, 6, 9, 10, 11, 13, 15, 17, 18, 22, 23, 29, 30, 33, 34, 36, 37, 38, 39, 41, 43, 46, 49),
    *(50, 51, 53, 55, 56, 59, 61, 62, 65, 66, 68, 69, 72, 73, 78, 83, 84, 85, 87, 88, 95, 96, 101),
    *(104, 105, 107, 111, 113, 115, 122, 124, 135, 141, 142, 143, 146, 150, 154, 157, 158, 159),
    *(165, 172, 174, 181, 183, 184, 191, 193, 195, 197, 199, 202, 213, 215, 216, 219, 220, 223),
    *(225, 228, 230, 232, 233, 238, 239, 242, 243, 246, 250, 251, 252, 255, 260, 261, 263, 269),
    *(272, 273, 275, 281, 283, 284, 285, 286, 287, 288, 290, 291, 292, 293, 295, 304, 307, 309),
    *(310, 314, 315, 319, 323, 328, 330, 331, 336, 342, 345, 349, 350, 351, 352, 355, 357, 368),
    *(370, 371, 374, 379, 380, 383, 384, 397, 401, 403, 405, 407, 408, 411, 412, 413, 414, 417),
    *(419, 421, 423, 427, 429, 430, 432, 440, 441, 442, 443, 444, 446, 454, 457),
)


class PascalContext(Dataset[Sample]):
    """Images float32 (3, H, W) in [0, 1] of many sizes, and the targets of five tasks.

    segmentation (H, W) of 21 classes; parts (H, W) of 7, unknown all over an image in which no
    person has annotated parts; saliency and edges (1, H, W), 0 or 1; normals (3, H, W). A map whose
    size differs from its image's takes the nearest pixels. `augment.Resize` as `transform` makes
    batches possible. Needs pillow, scipy and scikit-image: pip install 'mtlkernels[data]'.
    """

    def __init__(
        self, root: str | Path, split: str = "train", transform: Transform | None = None
    ) -> None:
        self.layout = Layout("PASCAL-Context", root, TREE)
        self.transform = transform
        self.tasks = TASKS
        listed = self.layout.file("ImageSets", "Context", f"{self.layout.split(split, SPLITS)}.txt")
        self.names = self.layout.read(listed, _read_names)
        if not self.names:
            raise self.layout.broken(f"{listed} is empty")

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Sample:
        name = self.names[index]
        read = self.layout.read
        image = read(self.layout.file("JPEGImages", f"{name}.jpg"), read_picture)
        labels = read(
            self.layout.file("pascal-context", "trainval", f"{name}.mat"), _context_labels
        )
        found = read(self.layout.file("normals_distill", f"{name}.png"), _read_normals)
        targets = {
            "segmentation": read(self._segmentation_file(name), _read_classes),
            "parts": read(self.layout.file("human_parts", f"{name}.mat"), _read_parts),
            "saliency": read(self.layout.file("sal_distill", f"{name}.png"), _read_saliency),
            "edges": _edges(labels),
            "normals": _mask_normals(found, labels),
        }
        height, width = image.shape[-2:]
        targets = {task: nearest(target, height, width) for task, target in targets.items()}
        sample = (image, targets)
        return sample if self.transform is None else self.transform(sample)

    def _segmentation_file(self, name: str) -> Path:
        path = self.layout.root / "semseg" / "VOC12" / f"{name}.png"
        if path.is_file():
            return path
        return self.layout.file("semseg", "pascal-context", f"{name}.png")


def _read_names(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").split()


def _read_classes(path: Path) -> Tensor:
    return class_map(read_pixels(path), CLASSES, ignored=255)


def _read_saliency(path: Path) -> Tensor:
    return (channels_first(read_pixels(path))[:1] > 127).float()


def _read_normals(path: Path) -> Tensor:
    pixels = read_pixels(path)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[-1] < 3:
        raise ValueError(
            "normals in 8 bits and 3 channels were expected, "
            f"not {pixels.dtype} of the shape {pixels.shape}"
        )
    return channels_first(pixels)[:3] / 255 * 2 - 1


def _context_labels(path: Path) -> np.ndarray[Any, Any]:
    labels = np.asarray(data_package("scipy.io").loadmat(path)["LabelMap"], dtype=np.int64)
    if labels.ndim != 2:
        raise ValueError(f"LabelMap has height and width, not the shape {labels.shape}")
    return labels


def _edges(labels: np.ndarray[Any, Any]) -> Tensor:
    """The borders between classes, thinned to one pixel, (1, H, W) of 0 and 1."""
    border = data_package("scipy.ndimage").laplace(labels, mode="mirror") != 0
    return channels_first(data_package("skimage.morphology").thin(border))


def _mask_normals(found: Tensor, labels: np.ndarray[Any, Any]) -> Tensor:
    known = torch.from_numpy(np.isin(labels, NORMAL_CLASSES))
    known = nearest(known, *found.shape[-2:])
    return unknown_where(unit_normals(found), ~known)


def _read_parts(path: Path) -> Tensor:
    """The parts of all persons, later ones above earlier; -1 everywhere where there is none."""
    objects = data_package("scipy.io").loadmat(path)["anno"]["objects"][0, 0].ravel()
    height, width = objects[0]["mask"].shape
    target = torch.zeros(height, width, dtype=torch.int64)
    seen = False
    for thing in objects:
        if int(thing["class_ind"].item()) != PERSON:
            continue
        for part in thing["parts"].ravel():
            seen = True
            target[torch.from_numpy(part["mask"] > 0)] = PARTS[str(part["part_name"].item())]
    return target if seen else torch.full_like(target, IGNORE)
