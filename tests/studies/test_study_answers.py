"""The study's answers and sentences, from results made by hand whose numbers are known."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import pytest
import study_toy

from studies.imbalance import answers, results, summary, tables
from studies.imbalance.config import Config
from studies.imbalance.specs import Spec, best_spec, grid_specs, method_spec, single_spec
from studies.imbalance.storage import Folder

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
    jobs: int = 3,
) -> None:
    """A result whose metrics are its losses; `validation` is as the test data unless given."""
    numbers = {
        on: {task: {"loss": value, "metric": value} for task, value in found.items()}
        for on, found in (("test", losses), ("validation", validation or losses))
    }
    tasks = [
        {"name": task, "metric": "error", "unit": "points", "higher_is_better": False}
        for task in losses
    ]
    cost = {"steps": 24, "seconds": 1.0, "jobs": jobs, "threads": 1, "torch": "2"}
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
    assert answers.apart(equal) is None


def test_the_weighted_norm_is_taken_apart_into_weight_and_norm(tmp_path):
    """A grid in which the weight decides and the norm by itself has the other sign."""
    folder = Folder(tmp_path)
    put_alone(folder, TWO)
    put_equal(folder, TWO, [((1.0, 1.0), (1.0, 1.0), (80.0, 80.0))] * 3)
    for spec in grid_specs(CONFIG, PART, 2):
        assert spec.weights is not None
        losses = {task: 1 / w for task, w in zip(TWO, spec.weights, strict=True)}
        put(folder, spec, losses, [w**-0.5 for w in spec.weights], (80.0, 80.0))
    _, grid = answers.points(CONFIG, folder)
    assert answers.rivals(grid).first.value == pytest.approx(-1.0)
    assert answers.apart(grid) == pytest.approx((-1.0, 1.0))


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
    monkeypatch.setattr("studies.imbalance.ranks.REPLICATES", 200)
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
    assert "| grid points: one seed, weights are set |" in table


def against_the_grid(folder: Folder, gains: Mapping[str, Sequence[float]]) -> None:
    """Runs with a loss of 1 - gain / 100 for each task and seed, of every method of the part."""
    put_alone(folder, TWO)
    for spec in grid_specs(CONFIG, PART, 2):
        loss = 0.9 if spec.weights == (1.0, 8.0) else 1.0
        put(folder, spec, dict.fromkeys(TWO, loss), (1.0, 2.0), (80.0, 80.0))
    for method in METHODS:
        for seed, gain in zip(CONFIG.seeds, gains[method], strict=True):
            if method == "grid":
                spec = best_spec(CONFIG, PART, "full", seed, (1.0, 8.0))
            else:
                spec = method_spec(CONFIG, PART, method, "full", seed)
            put(folder, spec, dict.fromkeys(TWO, 1 - gain / 100), (1.0, 2.0), (80.0, 80.0))


GAINS = {
    "equal": (-3.0, -2.0, -1.0),
    "grid": (4.0, 5.0, 6.0),
    "avgnorm-sum-last": (5.0, 7.0, 9.0),
    "imtlg": (4.5, 4.0, 6.5),
    "pcgrad": (20.0, 30.0, 40.0),
}


def test_duels_are_seed_by_seed_and_say_how_often_equals_agree(tmp_path, monkeypatch):
    monkeypatch.setattr("studies.imbalance.ranks.REPLICATES", 50)
    folder = Folder(tmp_path)
    against_the_grid(folder, GAINS)
    scores = answers.scores(CONFIG, folder, PART)
    found = answers.duels(scores, "grid")
    assert [duel.method for duel in found] == ["avgnorm-sum-last", "imtlg"]
    rule, other = found
    assert rule.differences == pytest.approx((1.0, 2.0, 3.0))
    assert rule.verdict == "better in every seed"
    assert other.differences == pytest.approx((0.5, -1.0, 0.5))
    assert other.verdict == "the seeds disagree"
    lost = replace(rule, differences=tuple(-d for d in rule.differences))
    assert lost.verdict == "worse in every seed"
    assert replace(rule, differences=(0.0, 0.0)).verdict == "the same runs"
    against_equal = answers.duels(scores, "equal")
    assert [duel.method for duel in against_equal] == ["grid", "avgnorm-sum-last", "imtlg"]
    assert against_equal[0].differences == pytest.approx((7.0, 7.0, 7.0))
    assert answers.duels({"equal": scores["equal"]}, "grid") == []
    told = tables.methods_block(CONFIG, folder)
    row = "| `avgnorm-sum-last` | +2.00 | better in every seed | +9.00 | better in every seed |"
    assert row in told
    assert "| `grid` | - | - | +7.00 | better in every seed |" in told
    assert "| a | error in points, lower is better | 1 | 1.02 | 0.95 | 0.93 |" in told
    assert "Of equals 3 seeds agree, one way or the other, 2 times in 8." in told
    assert "`avgnorm-sum-last`, ends +2.00 points from the grid search's choice" in told
    assert "the search took 3 times its steps" in told
    assert (
        "equal weights gain -2.00 %, the grid's choice +5.00 % at 3 times the steps, the paper's "
        "rule +7.00 % (the rule against the choice: better in every seed; the rule against equal "
        "weights: better in every seed; the choice against equal weights: better in every seed).\n"
    ) in summary.summary_block(CONFIG, folder)


def test_the_grid_chooses_by_validation_whatever_the_test_says(tmp_path):
    folder = Folder(tmp_path)
    put_alone(folder, TWO)
    put_equal(folder, TWO, [((1.0, 1.0), (1.0, 2.0), (80.0, 80.0))] * 3)
    by_validation, by_test = (8.0, 1.0), (1.0, 8.0)
    for spec in grid_specs(CONFIG, PART, 2):
        test = dict.fromkeys(TWO, 0.5 if spec.weights == by_test else 1.0)
        validation = dict.fromkeys(TWO, 0.5 if spec.weights == by_validation else 1.0)
        put(folder, spec, test, validation=validation)
    assert results.best_weights(CONFIG, folder, PART) == by_validation


def test_the_page_says_how_many_runs_went_on_at_a_time(tmp_path):
    folder = Folder(tmp_path)
    put_alone(folder, TWO)
    put_equal(folder, TWO, [((1.0, 1.0), (1.0, 2.0), (80.0, 80.0))] * 3)
    config = without_grid()
    once = "torch 2, 1 thread a run, at most 3 at a time"
    assert results.environment(config, folder) == once
    put(folder, single_spec(config, PART, "a", "full", 2), {"a": 1.0}, jobs=8)
    assert results.environment(config, folder) == f"{once}; {once.replace('3', '8')}"


def test_the_ratio_of_norms_is_the_geometric_mean_over_the_seeds(tmp_path):
    folder = Folder(tmp_path)
    norms = ((1.0, 2.0), (12.0, 3.0), (4.0, 32.0))
    put_equal(folder, TWO, [((1.0, 1.0), row, (80.0, 80.0)) for row in norms])
    assert answers.norm_ratio(CONFIG, folder, PART, "full") == pytest.approx(4)


def test_two_tasks_have_no_angle_to_compare(tmp_path, monkeypatch):
    monkeypatch.setattr("studies.imbalance.ranks.REPLICATES", 200)
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
