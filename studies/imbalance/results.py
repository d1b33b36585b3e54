"""What the results say: metrics against the single-task baselines, and costs.

The sign is that of the paper (ASTMT's convention): one metric a task, the mean of the relative
gains over training each task alone, in percent; 0 is a tie and higher is better.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from examples.demo.metrics import delta_m
from studies.imbalance.config import FULL, Config, Part
from studies.imbalance.specs import (
    Spec,
    best_spec,
    grid_specs,
    independent_specs,
    method_spec,
    single_spec,
)
from studies.imbalance.storage import Folder


class MissingRunError(RuntimeError):
    """A result that is asked for has not been run."""


@dataclass(frozen=True)
class Score:
    """A method over the seeds: gains in percent, and what one model cost.

    `steps` and `seconds` are the mean of the runs; for the grid search those of all its points.
    """

    gains: tuple[float, ...]
    steps: float
    seconds: float

    @property
    def mean(self) -> float:
        return sum(self.gains) / len(self.gains)

    @property
    def deviation(self) -> float:
        """The standard deviation over the seeds (n - 1); NaN of one seed."""
        if len(self.gains) < 2:
            return math.nan
        squares = sum((gain - self.mean) ** 2 for gain in self.gains)
        return math.sqrt(squares / (len(self.gains) - 1))


def result_of(folder: Folder, spec: Spec) -> dict[str, Any]:
    """The run's result; raises MissingRunError where there is none."""
    found = folder.result(spec)
    if found is None:
        raise MissingRunError(
            f"{folder.root} has no result of {spec.name}, or a stale one: run the study first"
        )
    return found


def task_names(config: Config, folder: Folder, part: Part) -> list[str]:
    """The tasks of a part in their order, as its runs name them."""
    found = result_of(folder, method_spec(config, part, "equal", FULL, config.seeds[0]))
    return [task["name"] for task in found["tasks"]]


def metric_names(config: Config, folder: Folder, part: Part) -> dict[str, str]:
    """What the metric of each task is, with its unit and direction."""
    found = result_of(folder, method_spec(config, part, "equal", FULL, config.seeds[0]))
    return {
        task["name"]: f"{task['metric']}{' in ' + task['unit'] if task['unit'] else ''}, "
        f"{'higher' if task['higher_is_better'] else 'lower'} is better"
        for task in found["tasks"]
    }


def baselines(
    config: Config, folder: Folder, part: Part, setting: str, seed: int, tasks: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Each task's run alone, by its name."""
    return {
        task: result_of(folder, single_spec(config, part, task, setting, seed)) for task in tasks
    }


def gain(result: dict[str, Any], single: dict[str, dict[str, Any]], on: str = "test") -> float:
    """Mean relative gain over the baselines, in percent."""
    tasks = result["tasks"]
    return delta_m(
        [result[on][task["name"]]["metric"] for task in tasks],
        [single[task["name"]][on][task["name"]]["metric"] for task in tasks],
        [task["higher_is_better"] for task in tasks],
        sign="gain",
    )


def best_weights(config: Config, folder: Folder, part: Part) -> tuple[float, ...]:
    """The grid point with the greatest gain on the validation data; of equals the first."""
    tasks = task_names(config, folder, part)
    single = baselines(config, folder, part, FULL, config.seeds[0], tasks)
    points = grid_specs(config, part, len(tasks))
    gains = [gain(result_of(folder, spec), single, "validation") for spec in points]
    weights = points[gains.index(max(gains))].weights
    assert weights is not None
    return weights


def score(config: Config, folder: Folder, part: Part, method: str, setting: str) -> Score:
    """A method's gains on the test data, a seed each, and its cost."""
    tasks = task_names(config, folder, part)
    gains, costs = [], []
    for seed in config.seeds:
        found = result_of(folder, spec_of(config, folder, part, method, setting, seed))
        gains.append(gain(found, baselines(config, folder, part, setting, seed, tasks)))
        costs.append(found["cost"])
    if method == "grid":
        points = grid_specs(config, part, len(tasks))
        whole = [result_of(folder, spec)["cost"] for spec in points]
        return Score(tuple(gains), *(sum(cost[k] for cost in whole) for k in ("steps", "seconds")))
    means = (sum(cost[k] for cost in costs) / len(costs) for k in ("steps", "seconds"))
    return Score(tuple(gains), *means)


def spec_of(
    config: Config, folder: Folder, part: Part, method: str, setting: str, seed: int
) -> Spec:
    """The run of a method; of "grid" that with the weights which the search chose."""
    if method == "grid":
        return best_spec(config, part, setting, seed, best_weights(config, folder, part))
    return method_spec(config, part, method, setting, seed)


def captions(config: Config, folder: Folder) -> list[str]:
    """What each data set is, in the words of its runs, each once."""
    found = {}
    for part in config.parts:
        spec = method_spec(config, part, "equal", FULL, config.seeds[0])
        found[part.data] = result_of(folder, spec)["caption"]
    return list(found.values())


def environment(config: Config, folder: Folder) -> str:
    """The torch versions, threads and runs at a time that the runs name, but for those that came
    after the grid's choice.
    """
    tasks = {part.data: task_names(config, folder, part) for part in config.parts}
    costs = [result_of(folder, spec)["cost"] for spec in independent_specs(config, tasks)]
    return "; ".join(
        sorted(
            {
                f"torch {cost['torch']}, {cost['threads']} thread a run, "
                f"at most {cost['jobs']} at a time"
                for cost in costs
            }
        )
    )
