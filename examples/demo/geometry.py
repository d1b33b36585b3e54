"""Depth, surface normals and depth edges from a calibrated disparity map; NaN is "unknown"."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

EDGE_RATIO = 1.05
"""Farthest over nearest depth in a 3 x 3 window above which there is a depth edge.

The floor, the most slanted large surface of the scene, stays near 1.01.
"""


@dataclass(frozen=True)
class Camera:
    """A rectified pinhole pair: lengths in pixels, the baseline in metres.

    `shift` is the difference of the two principal points along the row, which is added to a
    disparity.
    """

    focal: float
    baseline: float
    centre_x: float
    centre_y: float
    shift: float


def depth_from_disparity(disparity: Tensor, camera: Camera) -> Tensor:
    """Disparity d (H, W) in pixels -> depth (H, W) in metres: focal * baseline / (d + shift)."""
    depth = camera.focal * camera.baseline / (disparity + camera.shift)
    return torch.where(disparity.isfinite(), depth, torch.nan)


def normals_from_depth(depth: Tensor, camera: Camera) -> Tensor:
    """Depth (H, W) -> unit normals (3, H, W) towards the camera, axes right, down and forward.

    The cross product of the central differences of the back-projected points. Unknown at the
    border, where the pixel or one of the four neighbours is unknown, and across a depth edge, where
    the neighbours lie on two surfaces.
    """
    rows, columns = depth.shape
    y = torch.arange(rows, dtype=depth.dtype, device=depth.device)[:, None] - camera.centre_y
    x = torch.arange(columns, dtype=depth.dtype, device=depth.device) - camera.centre_x
    points = torch.stack((x * depth / camera.focal, y * depth / camera.focal, depth))
    along_x = points[:, 1:-1, 2:] - points[:, 1:-1, :-2]
    along_y = points[:, 2:, 1:-1] - points[:, :-2, 1:-1]
    normals = functional.normalize(torch.linalg.cross(along_y, along_x, dim=0), dim=0)
    normals = functional.pad(normals, (1, 1, 1, 1), value=torch.nan)
    usable = depth.isfinite() & (_depth_ratio(depth) <= EDGE_RATIO)
    return torch.where(usable, normals, torch.nan)


def edges_from_depth(depth: Tensor) -> Tensor:
    """Depth (H, W) -> 1 where known depths in a 3 x 3 window differ by more than 5 %, else 0.

    A window that shows a jump is an edge whatever it misses. One that shows none proves "no edge"
    only when it is complete; otherwise, and at unknown pixels, the label is unknown.
    """
    edge = _depth_ratio(depth) > EDGE_RATIO
    missing = depth.isnan().to(depth.dtype)[None, None]
    incomplete = functional.max_pool2d(missing, 3, stride=1, padding=1)[0, 0] > 0
    unknown = depth.isnan() | (incomplete & ~edge)
    return torch.where(unknown, torch.nan, edge.to(depth.dtype))


def _depth_ratio(depth: Tensor) -> Tensor:
    """Largest over smallest known depth in each 3 x 3 window; 0 where no depth is known."""
    maps = torch.stack((depth, 1 / depth)).nan_to_num(nan=0.0)
    extremes: Tensor = functional.max_pool2d(maps[None], 3, stride=1, padding=1)[0]
    return extremes.prod(dim=0)
