"""The data of the imbalance study: nothing that is trained on is tested on."""

from __future__ import annotations

import itertools

import pytest
import torch

from examples.demo import multimnist
from examples.demo.problem import Batch
from studies.imbalance import problems

pytestmark = pytest.mark.usefixtures("one_thread")


def test_no_digit_is_in_two_of_both_halves_validation_and_test(monkeypatch):
    """Each digit is one grey value of its own, which its composites show in the top left corner."""
    values = torch.arange(1, 1301, dtype=torch.float32)
    images = values[:, None, None].expand(-1, 28, 28)
    monkeypatch.setattr(multimnist, "load_digits", lambda: (images, torch.zeros(1300).long()))
    monkeypatch.setattr(problems, "VALIDATION_DIGITS", 100)
    data = problems.multimnist_data.__wrapped__()

    def digits(inputs: torch.Tensor) -> set[int]:
        grey = inputs * multimnist.DEVIATION + multimnist.MEAN
        return set(grey[:, 0, [0, -1], [0, -1]].flatten().round().int().tolist())

    generator = torch.Generator().manual_seed(0)
    groups = [digits(data.draw(half, 2000, generator).inputs) for half in ("a", "b")]
    groups += [digits(data.validation.inputs), digits(data.test.inputs)]
    assert all(groups)
    assert len(set.union(*groups)) == sum(map(len, groups))
    assert digits(data.draw("ab", 2000, generator).inputs) <= groups[0] | groups[1]
    assert digits(data.draw("ab", 2000, generator).inputs) & groups[1]


def test_halves_of_the_stereo_scene_and_its_held_out_columns_do_not_overlap(monkeypatch):
    pytest.importorskip("skimage")
    data = problems.stereo_data()
    columns = sorted(
        [problems.STEREO_COLUMNS[half] for half in ("a", "b")]
        + [(s.start, s.stop) for s in (problems.STEREO_VALIDATION, problems.STEREO_TEST)]
    )
    assert all(left[1] <= right[0] for left, right in itertools.pairwise(columns))
    places = torch.arange(741.0).expand(500, 741)
    scene = Batch(places[None, None], {"edges": places[None, None]})
    monkeypatch.setattr(problems, "CROP", 4)
    monkeypatch.setattr(problems, "STEREO_TEST", slice(371, 492))
    monkeypatch.setattr(problems.stereo, "load_motorcycle", lambda: ())
    given: list[slice] = []

    def dense_maps(training: list[slice]) -> Batch:
        given.extend(training)
        return scene

    monkeypatch.setattr(problems.stereo, "dense_maps", dense_maps)
    numbered = problems.stereo_data.__wrapped__()
    assert given == [slice(0, 247), slice(494, 741)]
    generator = torch.Generator().manual_seed(0)
    assert "4 x 4 from columns 0 to 246 and 494 to 740" in numbered.caption
    assert "validation on columns 247 to 370, test on columns 371 to 491;" in numbered.caption
    drawn = {half: numbered.draw(half, 3000, generator).inputs for half in ("a", "b", "ab")}
    for half in ("a", "b"):
        assert drawn[half].aminmax() == (
            problems.STEREO_COLUMNS[half][0],
            problems.STEREO_COLUMNS[half][1] - 1,
        )
    assert set(drawn["ab"].unique().tolist()) == set(
        drawn["a"].unique().tolist() + drawn["b"].unique().tolist()
    )
    for held, width in ((data.validation, 124), (data.test, 122)):
        assert held.inputs.shape == (1, 4, 500, width)
        assert all(target.shape[-1] == width for target in held.targets.values())


def test_depth_is_relative_to_the_columns_that_are_trained_on():
    image, disparity = torch.zeros(3, 4, 6), torch.full((4, 6), 20.0)
    disparity[:, 2:4] = 5.0
    outer = (slice(0, 2), slice(4, 6))
    depth = problems.stereo.dense_maps(image, disparity, outer).targets["depth"][0, 0]
    assert depth[:, [0, 1, 4, 5]].abs().max() < 1e-6
    assert depth[:, 2:4].min() > 1
    left = problems.stereo.dense_maps(image, disparity).targets["depth"]
    assert abs(left.mean().item()) < 1e-6


def test_yeast_is_cut_in_halves_of_its_training_genes():
    pytest.importorskip("river")
    data = problems.yeast_data()
    generator = torch.Generator().manual_seed(0)
    genes = [
        {tuple(row) for row in data.draw(half, 5000, generator).inputs.tolist()}
        for half in ("a", "b")
    ]
    held = [{tuple(row) for row in batch.inputs.tolist()} for batch in (data.validation, data.test)]
    assert not genes[0] & genes[1]
    assert not (genes[0] | genes[1]) & (held[0] | held[1])
    assert [len(rows) for rows in held] == [300, 917]


@pytest.mark.parametrize(("data", "encoder"), [("multimnist", "vit"), ("multimnist", "lenet")])
def test_encoders_tell_their_last_shared_layer(data, encoder):
    parts = problems.ENCODERS[data, encoder]
    built = parts.build()
    last = list(parts.last(built).parameters())
    assert [len(param) for param in last] == [50, 50]
    assert parts.head("left")(built(torch.zeros(2, 1, 28, 28))).shape == (2, 10)
