"""Cityscapes in the field's preprocessed layout: 7 classes and the disparity of street scenes."""

from __future__ import annotations

from pathlib import Path

from studies.imbalance.data.common import Layout, Transform
from studies.imbalance.data.npy_maps import SPLITS, Map, NpyMaps
from studies.imbalance.tasks import depth, segmentation

TREE = """
  train/   and val/ with the same folders; 2975 and 500 samples at 128 x 256
    image/0.npy ...      (H, W, 3) in [0, 1]
    label_7/0.npy ...    (H, W), classes 0 to 6, -1 where there is none; or label/, the same;
                         or label_19/, classes 0 to 18
    depth/0.npy ...      (H, W, 1) disparity, 0 where unknown
"""
FOLDERS = {7: ("label_7", "label"), 19: ("label_19",)}


class Cityscapes(NpyMaps):
    """Targets: segmentation (H, W), disparity (1, H, W) as stored.

    The field calls the second task depth, though it trains and measures on inverse depth. `split`
    is "train" or "val", whose numbers are the published ones. `classes` is 7 or 19. Copies differ
    in the folder of the 7 classes: `label_7` goes before `label`.
    """

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        transform: Transform | None = None,
        classes: int = 7,
    ) -> None:
        if classes not in FOLDERS:
            raise ValueError(f"Cityscapes is labelled with 7 or 19 classes, not {classes}")
        layout = Layout("Cityscapes", root, TREE)
        place = layout.root / layout.split(split, SPLITS)
        found = [name for name in FOLDERS[classes] if (place / name).is_dir()]
        if not found:
            raise layout.broken(f"{place} has no folder {' or '.join(FOLDERS[classes])}")
        maps = {
            "segmentation": Map(found[0], "classes", classes),
            "disparity": Map("depth", "positive"),
        }
        super().__init__(layout, split, maps, transform)
        self.tasks = (segmentation("segmentation", classes), depth("disparity"))
