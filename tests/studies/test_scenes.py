"""Drawn scenes: their labels agree with each other and with the geometry they come from."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch

from examples.demo.problem import Batch
from studies.imbalance import bodies, scenes
from studies.imbalance.__main__ import main
from studies.imbalance.scenes import render

pytestmark = pytest.mark.usefixtures("one_thread")
SEEDS = range(20)


@cache
def all_drawn() -> list[Batch]:
    return [render(seed, size=48) for seed in SEEDS]


def rays(size: int) -> torch.Tensor:
    """(size, size) pixel centres from -1 to 1, before the field of view."""
    return (torch.arange(size) + 0.5) / size * 2 - 1


def test_a_seed_gives_the_same_bits_and_another_seed_another_scene() -> None:
    again, other = render(3, size=48), render(4, size=48)
    assert torch.equal(again.inputs, all_drawn()[3].inputs)
    for name, target in again.targets.items():
        assert torch.equal(target, all_drawn()[3].targets[name])
    assert not torch.equal(again.inputs, other.inputs)


def test_shapes_types_and_ranges() -> None:
    for drawn in all_drawn():
        assert drawn.inputs.shape == (1, 3, 48, 48)
        assert drawn.inputs.abs().max() <= 0.5
        channels = {"depth": 1, "normals": 3, "edges": 1, "albedo": 3}
        for name, target in drawn.targets.items():
            assert target.shape == ((1, channels[name]) if name in channels else (1,)) + (48, 48)
            assert target.isfinite().all()
        assert (drawn.targets["depth"] > 0).all()
        torch.testing.assert_close(drawn.targets["normals"].norm(dim=1), torch.ones(1, 48, 48))
        assert set(drawn.targets["edges"].unique().tolist()) <= {0.0, 1.0}
        assert drawn.targets["albedo"].min() >= 0
        assert drawn.targets["albedo"].max() <= 1


def test_every_class_and_part_that_can_be_seen_occurs() -> None:
    classes = torch.cat([drawn.targets["segmentation"].flatten() for drawn in all_drawn()]).unique()
    assert classes.tolist() == list(range(len(bodies.CLASSES)))
    parts = torch.cat([drawn.targets["parts"].flatten() for drawn in all_drawn()]).unique().tolist()
    unseen = {"front wall", "box bottom", "cylinder bottom"}  # behind the camera, or on the floor
    assert {bodies.PARTS[p] for p in parts} >= set(bodies.PARTS) - unseen
    assert not {bodies.PARTS[p] for p in parts} & {"box bottom", "cylinder bottom"}


def test_a_part_belongs_to_one_class() -> None:
    for drawn in all_drawn():
        part, kind = drawn.targets["parts"], drawn.targets["segmentation"]
        for p in part.unique().tolist():
            (found,) = kind[part == p].unique().tolist()
            name = bodies.PARTS[p].split()[-1 if "wall" in bodies.PARTS[p] else 0]
            assert bodies.CLASSES[found] == name


@pytest.mark.parametrize("seed", [0, 1, 2, 5])
def test_points_of_a_flat_surface_lie_in_the_plane_of_its_normal(seed: int) -> None:
    """n . p is one number on each face of the room; the field of view is what makes it so."""
    drawn = all_drawn()[seed]
    depth, normals = drawn.targets["depth"][0, 0], drawn.targets["normals"][0]
    part = drawn.targets["parts"][0]
    down, right = torch.meshgrid(rays(48), rays(48), indexing="ij")
    planes = [part == p for p in (0, 1, 2, 3, 5) if (part == p).sum() > 30]
    assert planes

    def spread(half: float) -> float:
        points = torch.stack([right * half, down * half, torch.ones_like(right)]) * depth
        offsets = (points * normals).sum(dim=0)
        return max((offsets[m].max() - offsets[m].min()).item() for m in planes)

    halves = torch.tan(torch.deg2rad(torch.linspace(25.0, 35.0, 301))).tolist()
    assert min(map(spread, halves)) < 1e-2
    assert max(map(spread, halves)) > 0.05


def test_normals_face_the_camera() -> None:
    for drawn in all_drawn():
        normals = drawn.targets["normals"][0]
        down, right = torch.meshgrid(rays(48), rays(48), indexing="ij")
        facing = [
            (normals * torch.stack([right * h, down * h, torch.ones_like(right)])).sum(dim=0)
            for h in (0.45, 0.71)  # the narrowest and the widest field
        ]
        assert (torch.minimum(*facing) < 1e-4).all()


def test_edges_are_where_parts_or_classes_change() -> None:
    for drawn in all_drawn():
        edges, kind = drawn.targets["edges"][0, 0] > 0, drawn.targets["segmentation"][0]
        changes = torch.zeros_like(edges)
        changes[:, :-1] |= kind[:, :-1] != kind[:, 1:]
        changes[:-1] |= kind[:-1] != kind[1:]
        assert (edges | ~changes).all()
        part = drawn.targets["parts"][0]
        inside = torch.ones_like(edges)
        inside[:, :-1] &= part[:, :-1] == part[:, 1:]
        inside[:-1] &= part[:-1] == part[1:]
        assert (edges & inside).float().mean() < 0.05  # two bodies of one kind


def test_light_only_darkens_or_brightens_the_albedo() -> None:
    """Where a pixel's colour is not cut off, it is the albedo times one number, up to the noise."""
    drawn = all_drawn()[1]
    image, albedo = drawn.inputs[0] + 0.5, drawn.targets["albedo"][0]
    inside = (image < 0.95).all(dim=0) & (image > 0.05).all(dim=0)
    light = (image * albedo).sum(dim=0) / albedo.square().sum(dim=0)
    assert inside.float().mean() > 0.3
    assert (image - light * albedo).abs()[:, inside].max() < 0.06
    assert light[inside].min() >= 0.25 * 1.3 - 0.06
    assert light[inside].max() <= 1.3 + 0.06


def test_a_sphere_is_met_where_it_is() -> None:
    draw = bodies.Draw(0)
    ball = bodies._sphere(draw, torch.tensor([0.0, 0.0, 4.0]))
    origin, ahead = torch.tensor([[0.0, 0.3, 0.0]]), torch.tensor([[0.0, 0.0, 2.0]])
    distance, normal, part = ball.cast(origin, ahead)
    radius = bodies.Draw(0)(0.15, 0.5).item()
    expected = (4 - (radius**2 - (0.3 - radius) ** 2) ** 0.5) / 2
    assert distance.item() == pytest.approx(expected, rel=1e-5)
    assert normal.norm().item() == pytest.approx(1, rel=1e-5)
    assert part.item() == (10 if radius < 0.3 else 11)
    assert ball.cast(origin, -ahead)[0].isinf()


def test_the_cache_holds_what_is_drawn_and_goes_on_where_it_was(
    tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(scenes, "CHUNK", 4)
    first = scenes.scenes(range(4), tmp_path, size=16)
    drawn = []
    monkeypatch.setattr(
        scenes, "render", lambda seed, size: drawn.append(seed) or render(seed, size)
    )
    both = scenes.scenes(range(8), tmp_path, size=16)
    assert drawn == [4, 5, 6, 7]
    assert torch.equal(both.inputs[:4], first.inputs)
    assert torch.equal(both.targets["parts"][5:6], render(5, 16).targets["parts"])
    assert torch.equal(scenes.scenes(range(8), tmp_path, size=16).inputs, both.inputs)
    assert drawn == [4, 5, 6, 7]


@pytest.mark.parametrize("seeds", [range(1, 100), range(150), range(0, 200, 2), range(0)])
def test_whole_chunks_are_asked_for(seeds: range, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="whole chunks of 100 seeds"):
        scenes.scenes(seeds, tmp_path)


def test_the_sheet_is_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    assert main(["sheet", "--out", str(tmp_path / "sheet.png")]) == 0
    assert (tmp_path / "sheet.png").read_bytes().startswith(b"\x89PNG")
    assert str(tmp_path / "sheet.png") in capsys.readouterr().out
