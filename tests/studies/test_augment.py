"""Augmentation moves every map alike, and changes the numbers that a zoom or a flip changes."""

from __future__ import annotations

from pathlib import Path

import example_trees as trees
import pytest
import torch

from studies.imbalance.data.augment import Resize, ScaleCropFlip
from studies.imbalance.data.nyuv2 import NYUv2

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("scale", [1.0, 1.2, 1.5])
def test_what_is_enlarged_is_nearer(tmp_path: Path, scale: float) -> None:
    image, targets = NYUv2(trees.nyuv2(tmp_path))[2]
    targets["disparity"] = targets["depth"].clone()
    augment = ScaleCropFlip((scale,), generator=torch.Generator().manual_seed(0))
    for _ in range(4):
        found, changed = augment((image, dict(targets)))
        assert found.shape == image.shape
        assert changed["segmentation"].dtype == torch.int64
        depth, disparity = changed["depth"], changed["disparity"]
        torch.testing.assert_close(depth[depth.isfinite()].unique(), torch.tensor([3 / scale]))
        expected = torch.tensor([3 * scale])
        torch.testing.assert_close(disparity[disparity.isfinite()].unique(), expected)
    published = ScaleCropFlip((scale,), powers={"disparity": -1})
    _, changed = published((image, dict(targets)))
    disparity = changed["disparity"]
    torch.testing.assert_close(disparity[disparity.isfinite()].unique(), torch.tensor([3 / scale]))


def test_a_flip_turns_normals_and_moves_every_map_alike(tmp_path: Path) -> None:
    data = NYUv2(trees.nyuv2(tmp_path))
    augment = ScaleCropFlip((1.0,), generator=torch.Generator().manual_seed(0))
    image, targets = data[0]
    seen = set()
    for _ in range(16):
        found, changed = augment((image, dict(targets)))
        flipped = not torch.equal(found, image)
        seen.add(flipped)
        if flipped:
            assert torch.equal(found, image.flip(-1))
            assert torch.equal(changed["segmentation"], targets["segmentation"].flip(-1))
            assert torch.equal(changed["normals"][:, 5, 5], torch.tensor([-1.0, 0.0, 0.0]))
            assert changed["normals"][:, :, -1].isnan().all()
        else:
            assert torch.equal(changed["normals"][:, 5, 5], torch.tensor([1.0, 0.0, 0.0]))
    assert seen == {True, False}


def test_a_crop_shows_the_same_place_in_every_map() -> None:
    place = torch.arange(24.0 * 36).reshape(1, 24, 36) + 1
    sample = (place, {"depth": place.clone(), "segmentation": place[0].long()})
    augment = ScaleCropFlip((1.5,), powers={}, generator=torch.Generator().manual_seed(1))
    corners = set()
    for _ in range(100):
        image, targets = augment((sample[0], dict(sample[1])))
        assert torch.equal(targets["depth"][0].long(), targets["segmentation"])
        corners.add(int(targets["segmentation"].min()) - 1)
        assert (image - targets["depth"]).abs().max() < 2 * 36 + 2
        assert targets["segmentation"].unique().numel() == 16 * 24
    assert {corner // 36 for corner in corners} == set(range(24 - 16 + 1))
    assert {corner % 36 for corner in corners} == set(range(36 - 24 + 1))


def test_an_interpolated_normal_is_of_unit_length_or_unknown(tmp_path: Path) -> None:
    image, targets = NYUv2(trees.nyuv2(tmp_path))[0]
    targets["normals"][:, :, 9] = torch.tensor([0.0, 0.6, 0.8])[:, None]
    _, changed = Resize(30, 50)((image, targets))
    normals = changed["normals"]
    known = normals.isfinite().all(dim=0)
    assert normals.shape == (3, 30, 50)
    assert not known[:, :2].any()
    assert known[:, 4:].all()
    torch.testing.assert_close(normals[:, known].norm(dim=0), torch.ones(int(known.sum())))
    assert changed["depth"][0, 0].isnan().all()
    assert set(changed["segmentation"].unique().tolist()) <= set(range(-1, 13))


@pytest.mark.parametrize("scales", [(), (0.5, 1.0)])
def test_scales_that_would_leave_the_image_are_refused(scales: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        ScaleCropFlip(scales)
