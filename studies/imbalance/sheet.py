"""Twelve scenes with their labels on one sheet, to be looked at."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from mtlkernels.extras import require
from studies.imbalance.bodies import CLASSES, PARTS
from studies.imbalance.scenes import render

COUNT = 12


def draw_sheet(path: Path) -> Path:
    """Writes the sheet as a PNG: a row a scene, its image first, then a column a label."""
    require("matplotlib", "the sheet").use("Agg")
    pyplot = require("matplotlib.pyplot", "the sheet")
    names = ("image", "segmentation", "depth", "normals", "edges", "parts", "albedo")
    figure, axes = pyplot.subplots(COUNT, len(names), figsize=(len(names), COUNT), squeeze=False)
    for seed, row in enumerate(axes):
        drawn = render(seed)
        maps = {"image": drawn.inputs[0] + 0.5} | {n: t[0] for n, t in drawn.targets.items()}
        for axis, name in zip(row, names, strict=True):
            limits = {"segmentation": (0, len(CLASSES) - 1), "parts": (0, len(PARTS) - 1)}
            low, high = limits.get(name, (None, None))
            axis.imshow(_pixels(name, maps[name]).numpy(), cmap="turbo", vmin=low, vmax=high)
            axis.set_axis_off()
            if seed == 0:
                axis.set_title(name, fontsize=7)
    figure.subplots_adjust(left=0.01, right=0.99, bottom=0.005, top=0.98, wspace=0.04, hspace=0.04)
    figure.savefig(path, dpi=90)
    pyplot.close(figure)
    return path


def _pixels(name: str, values: Tensor) -> Tensor:
    """(H, W, 3) colours in [0, 1], or (H, W) numbers."""
    if name == "normals":
        values = values * 0.5 + 0.5
    return values.movedim(0, -1).squeeze(-1) if values.dim() == 3 else values
