"""The bodies of a scene, a room and the objects in it: where rays hit them, and their colours."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot

CLASSES = ("floor", "wall", "ceiling", "box", "sphere", "cylinder")
PARTS = (
    "floor",
    "ceiling",
    "left wall",
    "right wall",
    "front wall",
    "back wall",
    "box top",
    "box bottom",
    "box x side",
    "box z side",
    "sphere upper half",
    "sphere lower half",
    "cylinder side",
    "cylinder top",
    "cylinder bottom",
)


@dataclass(frozen=True)
class Hit:
    """The nearest surface of R rays; all tensors have R rows.

    Attributes:
        distance: (R) along the ray, in lengths of its direction; infinite where nothing is hit.
        normal: (R, 3) unit normals against the ray.
        body: (R) number of the body, the room first.
        part: (R) index into `PARTS`.
    """

    distance: Tensor
    normal: Tensor
    body: Tensor
    part: Tensor

    @property
    def surface(self) -> Tensor:
        """(R) a number for each surface that has an outline; the two halves of a sphere are one."""
        return self.body * len(PARTS) + torch.where(self.part == 11, 10, self.part)


Caster = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
"""(origins, directions) -> distance (R), normal (R, 3), part (R) of the first surface ahead."""


@dataclass(frozen=True)
class Body:
    """An object, or the room: how rays meet it, its class, and its colours.

    Attributes:
        cast: where rays meet it.
        kinds: index into `CLASSES` of each of its parts, by index into `PARTS`.
        colours: (len(PARTS), 2, 3) in [0, 1], the two colours of the texture of each part.
        texture: (len(PARTS), 3) stripes per metre along x, y and z; 0 for a plain part.
    """

    cast: Caster
    kinds: dict[int, int]
    colours: Tensor
    texture: Tensor


class Draw:
    """Uniform numbers of a seed, one after the other."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand((), generator=self._generator)

    def triple(self, low: Sequence[float], high: Sequence[float]) -> Tensor:
        return torch.stack([self(a, b) for a, b in zip(low, high, strict=True)])

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self._generator)

    def looks(self, *parts: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Colours and texture, alike for the parts of a group; two groups of three have stripes."""
        colours, texture = torch.zeros(len(PARTS), 2, 3), torch.zeros(len(PARTS), 3)
        for group in parts:
            first = self.triple((0.15,) * 3, (0.95,) * 3)
            second = first * self(0.4, 1.0)
            waves = self.triple((-4.0,) * 3, (4.0,) * 3) * (self(0.0, 3.0) > 1)
            for part in group:
                colours[part], texture[part] = torch.stack([first, second]), waves
        return colours, texture


def room_of(draw: Draw, size: Tensor) -> Body:
    """The inside of a box: x from -w/2 to w/2, y from 0 up, z from 0 to the back wall."""
    low = torch.stack([-size[0] / 2, torch.zeros(()), torch.zeros(())])
    high = torch.stack([size[0] / 2, size[1], size[2]])

    def cast(origins: Tensor, directions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        ahead = torch.where(directions > 0, high, low)
        reach = (ahead - origins) / directions
        distance, axis = torch.where(directions == 0, torch.inf, reach).min(dim=1)
        positive = directions.gather(1, axis[:, None])[:, 0] > 0
        normal = one_hot(axis, 3) * torch.where(positive, -1.0, 1.0)[:, None]
        part = torch.tensor([[2, 3], [0, 1], [4, 5]])[axis, positive.long()]
        return distance, normal, part

    kinds = {0: 0, 1: 2, 2: 1, 3: 1, 4: 1, 5: 1}
    return Body(cast, kinds, *draw.looks((0,), (1,), (2, 3, 4, 5)))


def objects_of(draw: Draw, room: Tensor) -> list[Body]:
    """3 to 7 boxes, spheres and cylinders that stand on the floor."""
    found = []
    for _ in range(3 + int(draw(0.0, 5.0))):
        place = torch.stack([draw(-0.4, 0.4) * room[0], torch.zeros(()), draw(0.3, 0.9) * room[2]])
        make = (_box, _sphere, _cylinder)[int(draw(0.0, 3.0))]
        found.append(make(draw, place))
    return found


def _box(draw: Draw, place: Tensor) -> Body:
    half, turn = draw.triple((0.15, 0.15, 0.15), (0.5, 0.6, 0.5)), draw(0.0, math.pi)
    middle = place + torch.stack([torch.zeros(()), half[1], torch.zeros(())])
    c, s, one, zero = turn.cos(), turn.sin(), torch.ones(()), torch.zeros(())
    rows = [[c, zero, s], [zero, one, zero], [-s, zero, c]]
    rotation = torch.stack([torch.stack(row) for row in rows])

    def cast(origins: Tensor, directions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        start, way = (origins - middle) @ rotation.T, directions @ rotation.T
        way = torch.where(way == 0, 1e-12, way)
        near, far = (-half - start) / way, (half - start) / way
        enter, axis = torch.minimum(near, far).max(dim=1)
        leave = torch.maximum(near, far).min(dim=1).values
        distance = torch.where((enter < leave) & (enter > 0), enter, torch.inf)
        against = -way.gather(1, axis[:, None])[:, 0].sign()
        normal = (one_hot(axis, 3) * against[:, None]) @ rotation
        part = torch.where(axis == 1, torch.where(against > 0, 6, 7), torch.where(axis == 0, 8, 9))
        return distance, normal, part

    parts = (6, 7, 8, 9)
    return Body(cast, dict.fromkeys(parts, 3), *draw.looks(parts))


def _sphere(draw: Draw, place: Tensor) -> Body:
    radius = draw(0.15, 0.5)
    middle = place + torch.stack([torch.zeros(()), radius, torch.zeros(())])

    def cast(origins: Tensor, directions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        start = origins - middle
        a, b = directions.square().sum(dim=1), (start * directions).sum(dim=1)
        under = b.square() - a * (start.square().sum(dim=1) - radius**2)
        distance = (-b - under.clamp_min(0).sqrt()) / a
        distance = torch.where((under > 0) & (distance > 0), distance, torch.inf)
        normal = (start + distance.nan_to_num(posinf=0)[:, None] * directions) / radius
        return distance, normal, torch.where(normal[:, 1] > 0, 10, 11)

    parts = (10, 11)
    return Body(cast, dict.fromkeys(parts, 4), *draw.looks(parts))


def _cylinder(draw: Draw, place: Tensor) -> Body:
    radius, height = draw(0.12, 0.4), draw(0.3, 1.2)

    def cast(origins: Tensor, directions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        start = origins - place
        flat, way = start[:, ::2], directions[:, ::2]
        a, b = way.square().sum(dim=1).clamp_min(1e-12), (flat * way).sum(dim=1)
        under = b.square() - a * (flat.square().sum(dim=1) - radius**2)
        side = (-b - under.clamp_min(0).sqrt()) / a
        level = start[:, 1] + side * directions[:, 1]
        on_side = (under > 0) & (side > 0) & (level > 0) & (level < height)
        rise = torch.where(directions[:, 1] == 0, 1e-12, directions[:, 1])
        upper = rise < 0
        cap = (torch.where(upper, height, 0.0) - start[:, 1]) / rise
        on_cap = (cap > 0) & ((flat + cap[:, None] * way).square().sum(dim=1) < radius**2)
        side = torch.where(on_side, side, torch.inf)
        cap = torch.where(on_cap, cap, torch.inf)
        distance, zero = torch.minimum(side, cap), torch.zeros_like(side)
        reach = side.nan_to_num(posinf=0)[:, None]
        round_ = (flat + reach * way) / radius
        around = torch.stack([round_[:, 0], zero, round_[:, 1]], dim=1)
        along = torch.stack([zero, torch.where(upper, 1.0, -1.0), zero], dim=1)
        normal = torch.where((side < cap)[:, None], around, along)
        return distance, normal, torch.where(side < cap, 12, torch.where(upper, 13, 14))

    parts = (12, 13, 14)
    return Body(cast, dict.fromkeys(parts, 5), *draw.looks(parts))


def nearest(bodies: Sequence[Body], origins: Tensor, directions: Tensor) -> Hit:
    distances, normals, parts = zip(*(b.cast(origins, directions) for b in bodies), strict=True)
    distance, body = torch.stack(distances).min(dim=0)
    rays = torch.arange(len(origins))
    return Hit(distance, torch.stack(normals)[body, rays], body, torch.stack(parts)[body, rays])
