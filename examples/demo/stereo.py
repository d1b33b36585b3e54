"""Three dense tasks from one real image: Middlebury's "Motorcycle" inside the scikit-image wheel.

Depth, surface normals and depth edges of the left view come from its measured disparity. Training
draws crops from the left two thirds of the columns; the right third is held out.

Source: D. Scharstein et al., High-resolution stereo datasets with subpixel-accurate ground truth,
GCPR 2014; calibration from the docstring of `skimage.data.stereo_motorcycle`, valid for its quarter
resolution. That docstring pairs the pixels the other way round: the disparity belongs to the left
view (left (y, x) is right (y, x - disparity)), and unknown pixels hold inf.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from examples.demo import geometry, metrics
from examples.demo.models import DenseEncoder, MultiTask, dense_head
from examples.demo.problem import Batch, Problem, Task
from mtlkernels.extras import require

MOTORCYCLE = geometry.Camera(
    focal=994.978, baseline=0.193001, centre_x=311.193, centre_y=254.877, shift=31.086
)
TRAIN_COLUMNS = 494
TEST_COLUMNS = slice(494, 740)
CROP = 112
CROPS = 4

TASKS = (
    Task(
        name="depth",
        loss=metrics.absolute_error,
        measure=lambda prediction, target: metrics.absolute_error(prediction, target).item(),
        metric="mean absolute error",
        unit="m",
        higher_is_better=False,
    ),
    Task(
        name="normals",
        loss=metrics.cosine_error,
        measure=metrics.mean_angle,
        metric="mean angle",
        unit="deg",
        higher_is_better=False,
    ),
    Task(
        name="edges",
        loss=metrics.edge_error,
        measure=metrics.average_precision,
        metric="average precision",
        unit="",
        higher_is_better=True,
    ),
)
CHANNELS = {"depth": 1, "normals": 3, "edges": 1}


def load_motorcycle() -> tuple[Tensor, Tensor]:
    """The left image (3, 500, 741) in [0, 1] and its disparity (500, 741) in pixels."""
    left, _, disparity = require("skimage.data").stereo_motorcycle()
    image = torch.from_numpy(left).permute(2, 0, 1).to(torch.float32) / 255
    return image, torch.from_numpy(disparity)


def dense_maps(
    image: Tensor, disparity: Tensor, training: Sequence[slice] = (slice(TRAIN_COLUMNS),)
) -> Batch:
    """The whole picture as one batch: inputs (1, 4, H, W) and the three targets, NaN where unknown.

    The fourth input is the slope of the pixel's ray, (row - centre) / focal: a crop does not show
    where the horizon is. Depth is relative to the mean depth of the columns `training`, which
    leaves its error as it is and lets a network start near zero.
    """
    depth = geometry.depth_from_disparity(disparity.double(), MOTORCYCLE)
    seen = torch.cat([depth[:, columns] for columns in training], dim=1)
    maps = {
        "depth": (depth - seen.nanmean())[None],
        "normals": geometry.normals_from_depth(depth, MOTORCYCLE),
        "edges": geometry.edges_from_depth(depth)[None],
    }
    rows, columns = depth.shape
    slope = (torch.arange(rows) - MOTORCYCLE.centre_y) / MOTORCYCLE.focal
    inputs = torch.cat((image - 0.5, slope[:, None].expand(1, rows, columns)))
    return Batch(inputs[None], {name: target[None].float() for name, target in maps.items()})


def stereo_problem(device: torch.device) -> Problem:
    """The three dense tasks, with the data on `device`."""
    scene = dense_maps(*load_motorcycle())
    scene = Batch(
        scene.inputs.to(device), {name: target.to(device) for name, target in scene.targets.items()}
    )
    rows = scene.inputs.shape[-2]
    test = _cut(scene, [(slice(None), TEST_COLUMNS)])

    def sample(generator: torch.Generator) -> Batch:
        tops = torch.randint(rows - CROP + 1, (CROPS,), generator=generator).tolist()
        lefts = torch.randint(TRAIN_COLUMNS - CROP + 1, (CROPS,), generator=generator).tolist()
        windows = [
            (slice(top, top + CROP), slice(left, left + CROP))
            for top, left in zip(tops, lefts, strict=True)
        ]
        return _cut(scene, windows)

    return Problem(
        name="stereo",
        caption=(
            "one real image (Middlebury Motorcycle, 500 x 741, from scikit-image): trained on "
            f"{CROPS} crops of {CROP} x {CROP} a step from its left two thirds, judged on the "
            f"rest; {test.targets['edges'].nanmean():.3f} is the average precision of chance"
        ),
        tasks=TASKS,
        build=lambda: MultiTask(
            DenseEncoder(scene.inputs.shape[1]),
            {name: dense_head(channels) for name, channels in CHANNELS.items()},
        ),
        sample=sample,
        test=test,
        steps=200,
        rate=2e-3,
    )


def _cut(scene: Batch, windows: list[tuple[slice, slice]]) -> Batch:
    """Equal windows (rows, columns) of a scene of one picture, one after the other as a batch."""

    def crops(maps: Tensor) -> Tensor:
        return torch.cat([maps[..., rows, columns] for rows, columns in windows])

    return Batch(crops(scene.inputs), {name: crops(maps) for name, maps in scene.targets.items()})
