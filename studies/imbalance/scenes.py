"""Indoor scenes drawn from a seed alone: a colour image and exact labels for six dense tasks.

A scene is a room with 3 to 7 boxes, spheres and cylinders on its floor, under one or two lamps. The
camera is in the room. A ray caster finds the nearest surface of every pixel, and one more ray a
lamp finds whether it is in shadow. So the labels are exact, up to float32:

* segmentation: floor, wall, ceiling, box, sphere, cylinder (H, W);
* depth: distance along the camera's axis in metres (1, H, W);
* normals: unit normals, x right, y down, z forward (3, H, W);
* edges: 1 where the right or the lower neighbour belongs to another surface (1, H, W);
* parts: the face of each kind of object, 15 in all (H, W);
* albedo: the colour without light and shadow (3, H, W).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize

from examples.demo.problem import Batch
from studies.imbalance.bodies import PARTS, Body, Draw, Hit, nearest, objects_of, room_of

CHUNK = 100
"""Scenes a file of the cache."""
NEAR = 1e-4
"""Rays start this far from their surface, in metres, so that it does not shadow itself."""
AMBIENT = 0.25
"""Share of the light that has no direction."""


def render(seed: int, size: int = 64) -> Batch:
    """The scene of a seed as a batch of one; equal seeds give equal bits.

    Args:
        seed: of everything that is drawn.
        size: rows and columns of the image.

    Returns:
        inputs (1, 3, size, size) in [-0.5, 0.5], and the six targets that the module lists.
    """
    draw = Draw(seed)
    room = draw.triple((3.0, 2.4, 4.0), (6.0, 3.2, 8.0))
    bodies = [room_of(draw, room), *objects_of(draw, room)]
    eye = torch.stack([draw(-0.25, 0.25) * room[0], draw(1.1, 1.8), draw(0.3, 0.8)])
    axes = _axes(draw(-0.35, 0.35), draw(-0.1, 0.25))
    grid = (torch.arange(size) + 0.5) / size * 2 - 1
    field = torch.tan(draw(50.0, 70.0) * math.pi / 360)
    down, right = torch.meshgrid(grid * field, grid * field, indexing="ij")
    seen = torch.stack([right, down, torch.ones_like(right)], dim=-1).reshape(-1, 3)
    directions = seen @ axes
    hit = nearest(bodies, eye.expand_as(directions), directions)
    points = eye + hit.distance[:, None] * directions
    albedo = _albedo(bodies, points, hit)
    light = torch.full((len(points),), AMBIENT)
    lamps = 1 + int(draw(0.0, 2.0))
    for _ in range(lamps):
        lamp = torch.stack(
            [draw(-0.4, 0.4) * room[0], room[1] * draw(0.85, 0.97), draw(0.1, 0.9) * room[2]]
        )
        light = light + (1 - AMBIENT) / lamps * _lit(bodies, points, hit.normal, lamp)
    noise = draw.normal(len(points), 3) * 0.01
    image = (albedo * light[:, None] * 1.3 + noise).clamp(0, 1)
    kinds = torch.tensor([[body.kinds.get(p, 0) for p in range(len(PARTS))] for body in bodies])

    def maps(values: Tensor) -> Tensor:
        return values.reshape(size, size, -1).permute(2, 0, 1)[None].contiguous()

    normals = normalize(hit.normal, dim=1) @ axes.T
    targets = {
        "segmentation": maps(kinds[hit.body, hit.part])[:, 0],
        "depth": maps(hit.distance),
        "normals": maps(normals),
        "edges": _edges(maps(hit.surface)),
        "parts": maps(hit.part)[:, 0],
        "albedo": maps(albedo),
    }
    return Batch(maps(image - 0.5), targets)


def scenes(seeds: range, folder: Path, size: int = 64) -> Batch:
    """The scenes of many seeds, from the cache if it has them.

    What is drawn is written in files of `CHUNK` scenes, each whole or not there at all, so that an
    interrupted call goes on where it was.

    Args:
        seeds: of the scenes, in order; its start and stop are multiples of `CHUNK`.
        folder: of the cache; it is made where it is missing.
        size: rows and columns of the images.
    """
    if seeds.step != 1 or seeds.start % CHUNK or seeds.stop % CHUNK or not len(seeds):
        raise ValueError(f"{seeds}: scenes are drawn in whole chunks of {CHUNK} seeds")
    folder.mkdir(parents=True, exist_ok=True)
    chunks = []
    for start in range(seeds.start, seeds.stop, CHUNK):
        path = folder / f"scenes-{size}-{start}.pt"
        if not path.exists():
            drawn = _joined([render(seed, size) for seed in range(start, start + CHUNK)])
            unfinished = path.with_suffix(".part")
            torch.save({"inputs": drawn.inputs, **drawn.targets}, unfinished)
            unfinished.replace(path)
        stored = torch.load(path)
        chunks.append(Batch(stored.pop("inputs"), stored))
    return _joined(chunks)


def _axes(yaw: Tensor, pitch: Tensor) -> Tensor:
    """The camera's right, down and forward in the room, as rows; y is up in the room."""
    zero = torch.zeros(())
    sy, cy, sp, cp = yaw.sin(), yaw.cos(), pitch.sin(), pitch.cos()
    right = torch.stack([cy, zero, -sy])
    forward = torch.stack([sy * cp, -sp, cy * cp])
    down = torch.stack([-sy * sp, -cp, -cy * sp])
    return torch.stack([right, down, forward])


def _albedo(bodies: Sequence[Body], points: Tensor, hit: Hit) -> Tensor:
    """The colour of each point: stripes along the texture's waves."""
    colours = torch.stack([b.colours for b in bodies])[hit.body, hit.part]
    waves = torch.stack([b.texture for b in bodies])[hit.body, hit.part]
    second = ((points * waves).sum(dim=1) * 2 * math.pi).sin() > 0
    return torch.where(second[:, None], colours[:, 1], colours[:, 0])


def _lit(bodies: Sequence[Body], points: Tensor, normals: Tensor, lamp: Tensor) -> Tensor:
    """Lambert's cosine, 0 in the shadow of an object; the room throws none."""
    way = lamp - points
    cosine = (normalize(way, dim=1) * normals).sum(dim=1).clamp_min(0)
    start = points + NEAR * normals
    hidden = torch.zeros_like(cosine, dtype=torch.bool)
    for body in bodies[1:]:
        hidden |= body.cast(start, lamp - start)[0] < 1
    return torch.where(hidden, 0.0, cosine)


def _edges(surface: Tensor) -> Tensor:
    """1 where a pixel's right or lower neighbour is another surface. (B, 1, H, W)."""
    edges = torch.zeros_like(surface, dtype=torch.bool)
    edges[..., :, :-1] |= surface[..., :, :-1] != surface[..., :, 1:]
    edges[..., :-1, :] |= surface[..., :-1, :] != surface[..., 1:, :]
    return edges.float()


def _joined(batches: Sequence[Batch]) -> Batch:
    names = batches[0].targets
    return Batch(
        torch.cat([batch.inputs for batch in batches]),
        {name: torch.cat([batch.targets[name] for batch in batches]) for name in names},
    )
