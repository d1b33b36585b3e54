"""The study's answers and sentences, from results made by hand whose numbers are known."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import pytest
import study_toy

from examples.imbalance import answers, results, summary, tables
from examples.imbalance.config import Config
from examples.imbalance.specs import Spec, best_spec, grid_specs, method_spec, single_spec
from examples.imbalance.storage import Folder

pytestmark = pytest.mark.usefixtures("toy")

TWO, THREE = ("a", "b"), ("a", "b", "c")
METHODS = ("equal", "grid", "avgnorm-sum-last", "imtlg", "pcgrad")
PART = replace(study_toy.STUDY.parts[0], methods=METHODS, settings=("full",), setting_methods=())
CONFIG = Config(seeds=(0, 1, 2), parts=(PART,))


@pytest.fixture
def toy() -> Iterator[None]:
    with study_toy.registered():
        yield


def put(
    folder: Folder,
    spec: Spec,
    losses: Mapping[str, float],
    norms: Sequence[float] = (),
    angles: Sequence[float] = (),
    validation: Mapping[str, float] | None = None,
) -> None:
    """A result whose metrics are its losses; `validation` is as the test data unless given."""
    numbers = {
        on: {task: {"loss": value, "metric": value} for task, value in found.items()}
        for on, found in (("test", losses), ("validation", validation or losses))
    }
    tasks = [{"name": task, "higher_is_better": False} for task in losses]
    cost = {"steps": 24, "seconds": 1.0, "threads": 1, "torch": "2"}
    watched = {"norms": list(norms), "angles": list(angles)}
    folder.finish(spec, {"tasks": tasks, "cost": cost, "watched": watched, **numbers})


def put_alone(folder: Folder, tasks: Sequence[str], loss: float = 1.0) -> None:
    for seed in CONFIG.seeds:
        for task in tasks:
            put(folder, single_spec(CONFIG, PART, task, "full", seed), {task: loss})


def put_equal(
    folder: Folder,
    tasks: Sequence[str],
    rows: Sequence[tuple[Sequence[float], Sequence[float], Sequence[float]]],
) -> None:
    """Losses, norms and angles of the runs with equal weights, a row a seed."""
    for seed, (losses, norms, angles) in zip(CONFIG.seeds, rows, strict=True):
        spec = method_spec(CONFIG, PART, "equal", "full", seed)
        put(folder, spec, dict(zip(tasks, losses, strict=True)), norms, angles)


def without_grid(config: Config = CONFIG) -> Config:
    return replace(config, parts=(replace(PART, methods=("equal",), levels=()),))


def test_points_are_relative_to_their_run_and_hold_the_weights(tmp_path):
    folder = Folder(tmp_path)
    put_alone(folder, TWO, loss=2.0)
    put_equal(folder, TWO, [((2.0, 8.0), (3.0, 12.0), (80.0, 80.0))] * 3)
    for spec in grid_specs(CONFIG, PART, 2):
        put(folder, spec, {"a": 4.0, "b": 4.0}, (3.0, 12.0), (70.0, 70.0))
    equal, grid = answers.points(CONFIG, folder)
    half = math.log(4) / 2
    assert equal.runs == answers.EQUAL
    assert equal.norms.tolist() == [pytest.approx([-half, half])] * 3
    assert equal.excess.tolist() == [pytest.approx([-half, half])] * 3
    weighted = {
        spec.weights: row
        for spec, row in zip(grid_specs(CONFIG, PART, 2), grid.norms.tolist(), strict=True)
    }
    once, eight = math.log(4) / 2, math.log(8) / 2
    assert weighted[1.0, 1.0] == pytest.approx([-once, once])
    assert weighted[1.0, 8.0] == pytest.approx([-once - eight, once + eight])
    assert weighted[8.0, 1.0] == pytest.approx([-once + eight, once - eight])
    assert grid.excess.abs().max() == 0


def three_tasks(folder: Folder) -> None:
    """Runs in which the smaller norm loses, at angles without order, and all lose more from run to
    run, which explains nothing within one.
    """
    put_alone(folder, THREE)
    rows = []
    angles = ((60.0, 70.0, 80.0), (90.0, 60.0, 75.0), (70.0, 95.0, 50.0))
    for run, angle in enumerate(angles):
        rows.append(([(run + 1) * loss for loss in (3.0, 2.0, 1.0)], (1.0, 2.0, 3.0), angle))
    put_equal(folder, THREE, rows)


def test_angles_and_losses_are_relative_to_their_run_too(tmp_path):
    folder = Folder(tmp_path)
    three_tasks(folder)
    (found,) = answers.points(without_grid(), folder)
    assert found.angles[0].tolist() == pytest.approx([-10.0, 0.0, 10.0])
    assert found.angles.sum(dim=1).tolist() == pytest.approx([0.0] * 3, abs=1e-12)
    assert found.excess[0].tolist() == pytest.approx(found.excess[2].tolist())
    held = answers.rivals(found)
    assert held.first.value < -0.95
    assert held.second is not None
    assert abs(held.second.value) < 0.7
    assert held.lead is not None


def test_of_three_tasks_the_summary_counts_equal_weights_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("examples.imbalance.ranks.REPLICATES", 200)
    folder = Folder(tmp_path)
    three_tasks(folder)
    config = replace(CONFIG, parts=(replace(PART, methods=("equal", "grid")),))
    (part,) = config.parts
    for spec in grid_specs(config, part, 3):
        put(folder, spec, {"a": 1.0, "b": 2.0, "c": 3.0}, (1.0, 2.0, 3.0), (60.0, 70.0, 80.0))
    best = results.best_weights(config, folder, part)
    for seed in config.seeds:
        put(folder, best_spec(config, part, "full", seed, best), {"a": 1.0, "b": 2.0, "c": 3.0})
    told = summary.summary_block(config, folder)
    assert "the 1 data and encoders with equal weights" in told
    assert "the more it loses in 1, the larger the more in 0, no clear sign in 0" in told
    assert "Of the 1 with more than two tasks" in told
    table = tables.norms_block(config, folder)
    assert "| grid points: one seed; weights are set, angles are not |" in table


def test_two_tasks_have_no_angle_to_compare(tmp_path, monkeypatch):
    monkeypatch.setattr("examples.imbalance.ranks.REPLICATES", 200)
    folder = Folder(tmp_path)
    put_alone(folder, TWO)
    put_equal(folder, TWO, [((2.0, 3.0 + s), (5.0, 1.0), (80.0 + s,) * 2) for s in range(3)])
    config = without_grid()
    (found,) = answers.points(config, folder)
    held = answers.rivals(found)
    assert held.first.value < -0.8
    assert held.second is None
    assert held.lead is None
    table = tables.norms_block(config, folder)
    assert " | - | - |\n" in table
    assert "Two tasks have one angle" in table
    told = summary.summary_block(config, folder)
    assert "the more it loses in 1," in told
    assert "angle" not in told
