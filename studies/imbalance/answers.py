"""The study's three questions, answered in numbers from the JSONs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from studies.imbalance.config import FULL, SETTINGS, Config, Part
from studies.imbalance.ranks import Rivals, compare, spearman
from studies.imbalance.results import Score, baselines, result_of, score, spec_of, task_names
from studies.imbalance.specs import Spec, grid_specs, method_spec, methods_of, single_spec
from studies.imbalance.storage import Folder

PAPERS_RULE = "avgnorm-sum-last"
"""AvgNorm as the paper has it: S the norm of the summed gradients, on the last shared layer."""

EQUAL, GRID_POINTS = "equal weights", "grid points"


@dataclass(frozen=True)
class Points:
    """Runs of one part, each field (runs, tasks), less its mean over the tasks of the run: what is
    to be explained is which task of a run loses, not which run.

    norms: log of the task's gradient norm times its weight.
    weights: log of its weight alone.
    angles: mean angle to the other tasks' gradients, in degrees.
    excess: log of the test loss over that of the task trained alone.
    """

    part: str
    runs: str
    tasks: tuple[str, ...]
    norms: Tensor
    weights: Tensor
    angles: Tensor
    excess: Tensor


@dataclass(frozen=True)
class Duel:
    """A method against another, seed by seed, in points of gain."""

    method: str
    differences: tuple[float, ...]

    @property
    def mean(self) -> float:
        return sum(self.differences) / len(self.differences)

    @property
    def verdict(self) -> str:
        """What the seeds agree on."""
        if all(difference > 0 for difference in self.differences):
            return "better in every seed"
        if all(difference < 0 for difference in self.differences):
            return "worse in every seed"
        if not any(self.differences):
            return "the same runs"
        return "the seeds disagree"

    @property
    def chance(self) -> str:
        """How often the seeds would agree if the methods were equal."""
        seeds = len(self.differences)
        return f"of equals {seeds} seeds agree, one way or the other, 2 times in {2**seeds}"


def points(config: Config, folder: Folder) -> list[Points]:
    """Question 1: of each part the runs with equal weights, and those of its grid search."""
    found = []
    for part in config.parts:
        equal = [method_spec(config, part, "equal", FULL, seed) for seed in config.seeds]
        found.append(_points(config, folder, part, EQUAL, equal))
        tasks = len(task_names(config, folder, part))
        if grid := grid_specs(config, part, tasks):
            found.append(_points(config, folder, part, GRID_POINTS, grid))
    return found


def rivals(found: Points) -> Rivals:
    """How the excess loss goes with norms, and with angles.

    Two tasks have one angle, that between them: it cannot tell which of them loses.
    """
    angles = found.angles if len(found.tasks) > 2 else None
    return compare(found.norms, angles, found.excess)


def apart(found: Points) -> tuple[float, float] | None:
    """The excess loss's correlation with the weight alone, and with the norm alone; None where all
    weights are equal.
    """
    if not found.weights.any():
        return None
    alone = (found.weights, found.norms - found.weights)
    weight, norm = (spearman(x.flatten(), found.excess.flatten()).item() for x in alone)
    return weight, norm


def metrics(
    config: Config, folder: Folder, part: Part, method: str | None
) -> list[tuple[str, float]]:
    """Each task's metric on the test data, mean over the seeds; without a method trained alone."""
    tasks = task_names(config, folder, part)
    totals = dict.fromkeys(tasks, 0.0)
    for seed in config.seeds:
        for task in tasks:
            if method is None:
                spec = single_spec(config, part, task, FULL, seed)
            else:
                spec = spec_of(config, folder, part, method, FULL, seed)
            totals[task] += result_of(folder, spec)["test"][task]["metric"]
    return [(task, total / len(config.seeds)) for task, total in totals.items()]


def scores(config: Config, folder: Folder, part: Part, setting: str = FULL) -> dict[str, Score]:
    """Question 2, and with other settings 3: every method of a part, in the configured order."""
    return {
        method: score(config, folder, part, method, setting) for method in methods_of(part, setting)
    }


def duels(found: dict[str, Score], rival: str) -> list[Duel]:
    """The grid's choice and every rule that scales by norms of gradients against a rival."""
    if rival not in found:
        return []
    return [
        Duel(method, tuple(a - b for a, b in zip(held.gains, found[rival].gains, strict=True)))
        for method, held in found.items()
        if method.startswith("avgnorm") or method in ("grid", "slw", "ntkmtl", "dbmtl", "imtlg")
        if method != rival
    ]


def settings_of(part: Part) -> list[str]:
    """The settings that a part was run in, "full" first."""
    return [setting for setting in SETTINGS if setting == FULL or setting in part.settings]


def norm_ratio(config: Config, folder: Folder, part: Part, setting: str) -> float:
    """Largest over smallest gradient norm under equal weights, geometric mean over the seeds."""
    logs = []
    for seed in config.seeds:
        found = result_of(folder, method_spec(config, part, "equal", setting, seed))
        norms = found["watched"]["norms"]
        logs.append(math.log(max(norms) / min(norms)))
    return math.exp(sum(logs) / len(logs))


def _points(config: Config, folder: Folder, part: Part, runs: str, specs: Sequence[Spec]) -> Points:
    tasks = task_names(config, folder, part)
    norms, logs, angles, excess = [], [], [], []
    for spec in specs:
        found = result_of(folder, spec)
        single = baselines(config, folder, part, FULL, spec.seed, tasks)
        weights = spec.weights or [1.0] * len(tasks)
        norms.append(
            [math.log(w * n) for w, n in zip(weights, found["watched"]["norms"], strict=True)]
        )
        logs.append([math.log(w) for w in weights])
        angles.append(found["watched"]["angles"])
        excess.append(
            [
                math.log(found["test"][task]["loss"] / single[task]["test"][task]["loss"])
                for task in tasks
            ]
        )
    return Points(part.name, runs, tuple(tasks), *map(_centred, (norms, logs, angles, excess)))


def _centred(rows: list[list[float]]) -> Tensor:
    values = torch.tensor(rows, dtype=torch.float64)
    return values - values.mean(dim=1, keepdim=True)
