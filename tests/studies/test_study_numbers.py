"""What the imbalance study measures, draws and compares, by numbers known in advance."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import study_toy
import torch

from studies.imbalance.ranks import compare, ranks, spearman
from studies.imbalance.results import Score, gain
from studies.imbalance.specs import grid_points
from studies.imbalance.watching import Watch

PART = study_toy.STUDY.parts[0]
pytestmark = pytest.mark.usefixtures("one_thread")


def test_watch_sees_the_gradients_of_the_losses_themselves():
    shared = [torch.tensor([1.0, 2.0], requires_grad=True), torch.tensor([3.0], requires_grad=True)]
    losses = [3 * shared[0][0] + 0 * shared[1][0], shared[0].sum() * -2 + 4 * shared[1][0]]
    watch = Watch(2, [False, True])
    watch.look(losses, shared)
    watch.look([5 * loss for loss in losses], shared)
    found = watch.result()
    length = math.sqrt(24)
    root = math.sqrt(5)
    assert found["norms"] == pytest.approx([3 * root, length * root])
    assert found["norms_last"][1] == pytest.approx(4 * root)
    angle = math.degrees(math.acos(-6 / (3 * length)))
    assert found["angles"] == pytest.approx([angle, angle])
    assert found["conflicts"] == 1
    assert found["looks"] == 2


def test_grid_points_are_all_ratios_of_the_levels_once():
    part = replace(PART, levels=(1.0, 4.0, 16.0), draws=0)
    points = grid_points(part, 3)
    every = itertools.product((1, 4, 16), repeat=3)
    ratios = {tuple(w / min(point) for w in point) for point in every}
    assert {tuple(w / min(point) for w in point) for point in points} == ratios
    assert len(points) == len(ratios) == 19


def test_drawn_grid_points_are_different_and_the_same_each_time():
    part = replace(PART, levels=(1.0, 4.0), draws=9)
    points = grid_points(part, 14)
    assert points[0] == (1.0,) * 14
    assert len(set(points)) == 9
    assert points == grid_points(part, 14)
    assert all(min(point) == 1 and len(point) == 14 for point in points)


def test_as_many_draws_as_there_are_points_are_the_whole_grid():
    part = replace(PART, levels=(1.0, 4.0))
    whole = grid_points(replace(part, draws=0), 3)
    assert len(whole) == 7
    assert len(set(grid_points(replace(part, draws=6), 3))) == 6
    for draws in (7, 100):
        assert grid_points(replace(part, draws=draws), 3) == whole


def test_gain_is_the_mean_relative_change_and_positive_where_better():
    tasks = [{"name": "a", "higher_is_better": True}, {"name": "b", "higher_is_better": False}]
    result = {"tasks": tasks, "test": {"a": {"metric": 0.6}, "b": {"metric": 2.0}}}
    single = {"a": {"test": {"a": {"metric": 0.5}}}, "b": {"test": {"b": {"metric": 2.5}}}}
    assert gain(result, single) == pytest.approx(100 * (0.2 + 0.2) / 2)
    assert Score((1.0, 2.0, 3.0), 1, 1).deviation == pytest.approx(1.0)


def test_ranks_share_ties_and_spearman_is_known():
    values = torch.tensor([10.0, 20.0, 10.0, 30.0])
    assert ranks(values).tolist() == [1.5, 3.0, 1.5, 4.0]
    x = torch.tensor([106.0, 100, 86, 101, 99, 103, 97, 113, 112, 110])
    y = torch.tensor([7.0, 27, 2, 50, 28, 29, 20, 12, 6, 17])
    assert spearman(x, y).item() == pytest.approx(-29 / 165)
    assert spearman(x, torch.ones(10)).isnan()


def test_the_rival_that_explains_is_told_from_the_one_that_does_not():
    generator = torch.Generator().manual_seed(2)
    norms = torch.randn(6, 10, generator=generator)
    angles = torch.randn(6, 10, generator=generator)
    excess = -norms.exp() + 0.1 * torch.randn(6, 10, generator=generator)
    found = compare(norms, angles, excess)
    assert found.points == 60
    assert found.first.low <= found.first.value <= found.first.high < -0.8
    assert found.second.low < 0 < found.second.high
    assert found.lead.low > 0
    assert compare(angles, norms, excess).lead.high < 0
