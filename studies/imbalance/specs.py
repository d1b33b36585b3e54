"""The runs of a study: what each one asks for, and the name of its result."""

from __future__ import annotations

import itertools
import random
from dataclasses import asdict, dataclass
from typing import Any

from studies.imbalance.config import FULL, HALF, PRETRAINED, Config, Part
from studies.imbalance.problems import DATA, Halves
from studies.imbalance.recipes import RECIPES

SINGLE, METHOD, GRID, PRETRAIN = "single", "method", "grid", "pretrain"

PROTOCOL = 1
"""To be raised by hand when code changes the numbers in a way that nothing else in `Spec.asked`
shows: optimizer, schedule, networks, losses, metrics, or how gradients are watched.
"""


@dataclass(frozen=True)
class Spec:
    """One run: one task alone, all tasks under a method, a point of the grid, or a pre-training.

    `weights` are those of the losses, one a task, of grid points and of the grid's best.
    """

    part: Part
    kind: str
    label: str
    setting: str
    seed: int
    watch_every: int
    task: str | None = None
    weights: tuple[float, ...] | None = None

    @property
    def run(self) -> str:
        """The run's name among those of its problem."""
        return f"{self.setting}/{self.label}-seed{self.seed}"

    @property
    def name(self) -> str:
        """The run's name in the study."""
        return f"{self.part.name}/{self.run}"

    @property
    def halves(self) -> Halves:
        """The data that the run is trained on."""
        if self.kind == PRETRAIN:
            return "b"
        return "ab" if self.setting == FULL else "a"

    def asked(self) -> dict[str, Any]:
        """All that the numbers depend on, as JSON holds it; a result of another is stale.

        The data's caption stands for its cut, `PROTOCOL` for the code.
        """
        part = asdict(self.part)
        chosen = {key: part[key] for key in ("data", "encoder", "steps", "batch", "rate")}
        weights = None if self.weights is None else list(self.weights)
        recipe = RECIPES.get(self.label) if self.kind == METHOD else None
        data = DATA[self.part.data]()
        return chosen | {
            "protocol": PROTOCOL,
            "caption": data.caption,
            "recipe": None if recipe is None else recipe.told(len(data.tasks), self.seed),
            "kind": self.kind,
            "label": self.label,
            "setting": self.setting,
            "seed": self.seed,
            "watch_every": self.watch_every,
            "task": self.task,
            "weights": weights,
        }


def independent_specs(config: Config, tasks: dict[str, list[str]]) -> list[Spec]:
    """The runs that need no other: all but the grid's best and those with a pre-trained encoder.

    `tasks` has the names of each data set's tasks.
    """
    found = []
    for part in config.parts:
        for setting, seed in itertools.product(_settings(part), config.seeds):
            specs = _specs(config, part, tasks[part.data], setting, seed)
            found += [pretrain_of(specs[0])] if setting == PRETRAINED else specs
        found += grid_specs(config, part, len(tasks[part.data]))
    return found


def dependent_specs(
    config: Config, tasks: dict[str, list[str]], best: dict[str, tuple[float, ...]]
) -> list[Spec]:
    """The rest; `best` has the weights that the grid search chose for each part that has one."""
    found = []
    for part in config.parts:
        for setting, seed in itertools.product(_settings(part), config.seeds):
            if setting == PRETRAINED:
                found += _specs(config, part, tasks[part.data], setting, seed)
            if part.name in best and "grid" in methods_of(part, setting):
                found.append(best_spec(config, part, setting, seed, best[part.name]))
    return found


def grid_points(part: Part, tasks: int) -> list[tuple[float, ...]]:
    """The weightings of the grid search: every choice of levels, but one of those that differ by a
    factor, which is the learning rate's business; of more than `draws`, if that is given, equal
    weights and others drawn at random.
    """
    low, levels = min(part.levels), len(part.levels)
    if not part.draws or part.draws >= levels**tasks - (levels - 1) ** tasks:
        every = itertools.product(sorted(part.levels), repeat=tasks)
        return [weights for weights in every if min(weights) == low]
    generator = random.Random(0)
    found: dict[tuple[float, ...], None] = {(low,) * tasks: None}
    while len(found) < part.draws:
        drawn = tuple(generator.choice(sorted(part.levels)) for _ in range(tasks))
        if min(drawn) == low:
            found[drawn] = None
    return list(found)


def grid_specs(config: Config, part: Part, tasks: int) -> list[Spec]:
    """The runs of the grid search: one a weighting, all with the first seed."""
    if not part.levels:
        return []
    return [
        Spec(
            part,
            GRID,
            "grid-" + "-".join(f"{w:g}" for w in weights),
            FULL,
            config.seeds[0],
            config.watch_every,
            weights=weights,
        )
        for weights in grid_points(part, tasks)
    ]


def single_spec(config: Config, part: Part, task: str, setting: str, seed: int) -> Spec:
    """A task alone: the baseline."""
    return Spec(part, SINGLE, f"single-{task}", setting, seed, config.watch_every, task=task)


def method_spec(config: Config, part: Part, method: str, setting: str, seed: int) -> Spec:
    """All tasks under a method that is not the grid's best."""
    return Spec(part, METHOD, method, setting, seed, config.watch_every)


def pretrain_of(spec: Spec) -> Spec:
    """Equal weights on half b: what the encoder of a run with a pre-trained one comes from."""
    return Spec(spec.part, PRETRAIN, "pretrain", PRETRAINED, spec.seed, spec.watch_every)


def best_spec(
    config: Config, part: Part, setting: str, seed: int, weights: tuple[float, ...]
) -> Spec:
    """All tasks under the best weights of the grid search."""
    return Spec(part, METHOD, "grid", setting, seed, config.watch_every, weights=weights)


def methods_of(part: Part, setting: str) -> tuple[str, ...]:
    """The methods that are run in a setting."""
    return part.methods if setting == FULL else part.setting_methods


def _settings(part: Part) -> list[str]:
    return [FULL, *(s for s in (HALF, PRETRAINED) if s in part.settings)]


def _specs(config: Config, part: Part, tasks: list[str], setting: str, seed: int) -> list[Spec]:
    """The baselines and the methods, but for the grid's best."""
    single = [single_spec(config, part, task, setting, seed) for task in tasks]
    return single + [
        method_spec(config, part, method, setting, seed)
        for method in methods_of(part, setting)
        if method != "grid"
    ]
