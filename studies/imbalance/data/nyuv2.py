"""NYUv2 in the field's preprocessed layout: 13 classes, depth, and normals of indoor scenes."""

from __future__ import annotations

from pathlib import Path

from studies.imbalance.data.common import Layout, Transform
from studies.imbalance.data.npy_maps import Map, NpyMaps
from studies.imbalance.tasks import depth, normals, segmentation

CLASSES = 13
TREE = """
  train/   and val/ with the same folders; 795 and 654 samples at 288 x 384
    image/0.npy ...    (H, W, 3) in [0, 1]
    label/0.npy ...    (H, W), classes 0 to 12, -1 where there is none
    depth/0.npy ...    (H, W, 1) in metres, 0 where unknown
    normal/0.npy ...   (H, W, 3) unit vectors, 0 where unknown
"""
TASKS = (segmentation("segmentation", CLASSES), depth("depth"), normals("normals"))


class NYUv2(NpyMaps):
    """Targets: segmentation (H, W), depth (1, H, W) in metres, normals (3, H, W).

    `split` is "train" or "val". Published numbers come from "val", which the field calls the test
    set. `transform` maps a sample to a sample: `augment.ScaleCropFlip()` is the published one.
    """

    def __init__(
        self, root: str | Path, split: str = "train", transform: Transform | None = None
    ) -> None:
        maps = {
            "segmentation": Map("label", "classes", CLASSES),
            "depth": Map("depth", "positive"),
            "normals": Map("normal", "normals"),
        }
        super().__init__(Layout("NYUv2", root, TREE), split, maps, transform)
        self.tasks = TASKS
