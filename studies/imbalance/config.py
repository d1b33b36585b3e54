"""What a study consists of, read from a JSON file: data x encoder x methods x seeds x steps."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

from studies.imbalance.problems import ENCODERS
from studies.imbalance.recipes import check_recipe

FULL, HALF, PRETRAINED = "full", "half", "pretrained"
SETTINGS = (FULL, HALF, PRETRAINED)
"""Trained on all data; on half of it; on that half, from an encoder trained on the other half."""


class ConfigError(ValueError):
    """The file does not describe a study; the sentence says what to change."""


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return _is_whole(value) or (isinstance(value, float) and math.isfinite(value))


def _list_of(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, tuple) and all(map(fits, value))


TYPES: dict[Any, tuple[Callable[[Any], bool], str]] = {
    "str": (_is_text, "a text"),
    "int": (_is_whole, "a whole number"),
    "float": (_is_number, "a finite number"),
    "tuple[str, ...]": (_list_of(_is_text), "a list of texts"),
    "tuple[int, ...]": (_list_of(_is_whole), "a list of whole numbers"),
    "tuple[float, ...]": (_list_of(_is_number), "a list of finite numbers"),
    "tuple[Part, ...]": (_list_of(lambda value: isinstance(value, Part)), "a list of parts"),
}
"""What a field annotated so may hold, and how a sentence calls it."""


def _check_types(checked: Part | Config, name: str) -> None:
    for field in fields(checked):
        fits, told = TYPES[field.type]
        value = getattr(checked, field.name)
        if not fits(value):
            given = list(value) if isinstance(value, tuple) else value
            raise ConfigError(f"{name}: {field.name} must be {told}, not {given!r}")


@dataclass(frozen=True)
class Part:
    """One data set with one encoder.

    Args:
        data, encoder: names of `problems`.
        steps, batch, rate: of every run: number of steps, samples a step, peak rate of AdamW.
        methods: names of `recipes`; "grid" stands for the best weights of the grid search.
        levels: the weights that the grid search tries for each task.
        draws: how many of the weightings to try, drawn with a fixed seed; 0, or as many as there
            are, tries all of them.
        settings: of `SETTINGS`; "full" is always run.
        setting_methods: the methods to run in the settings other than "full".
    """

    data: str
    encoder: str
    steps: int
    batch: int
    rate: float
    methods: tuple[str, ...]
    levels: tuple[float, ...] = ()
    draws: int = 0
    settings: tuple[str, ...] = (FULL,)
    setting_methods: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.data}-{self.encoder}"

    def check(self) -> None:
        """Raises ConfigError where something is unknown, missing or out of range."""
        _check_types(self, self.name)
        for field in ("methods", "settings", "setting_methods", "levels"):
            if len(set(getattr(self, field))) < len(getattr(self, field)):
                raise ConfigError(f"{self.name}: {field} must have nothing twice")
        if (self.data, self.encoder) not in ENCODERS:
            pairs = ", ".join(f"{data} with {encoder}" for data, encoder in ENCODERS)
            raise ConfigError(f"{self.name}: there is {pairs}")
        for field in ("steps", "batch", "rate"):
            if not getattr(self, field) > 0:
                raise ConfigError(f"{self.name}: {field} must be positive")
        if unknown := set(self.settings) - set(SETTINGS):
            raise ConfigError(f"{self.name}: {min(unknown)!r} is none of {', '.join(SETTINGS)}")
        if "equal" not in self.methods:
            raise ConfigError(f"{self.name}: methods must have 'equal', which costs compare with")
        if missing := set(self.setting_methods) - set(self.methods):
            raise ConfigError(f"{self.name}: {min(missing)!r} of setting_methods is not in methods")
        if set(self.settings) - {FULL} and "equal" not in self.setting_methods:
            raise ConfigError(f"{self.name}: setting_methods must have 'equal' too")
        if ("grid" in self.methods) != bool(self.levels):
            raise ConfigError(f"{self.name}: 'grid' in methods and levels go together")
        if not all(level > 0 for level in self.levels) or self.draws < 0:
            raise ConfigError(f"{self.name}: levels are positive, and draws is not below 0")
        for method in self.methods:
            try:
                check_recipe(method)
            except ValueError as error:
                raise ConfigError(f"{self.name}: {error}") from error


@dataclass(frozen=True)
class Config:
    """A whole study.

    Args:
        seeds: of the runs; the first is also that of the grid search.
        watch_every: steps between two looks at the tasks' gradients.
        checkpoint_every: steps between two checkpoints.
    """

    seeds: tuple[int, ...]
    parts: tuple[Part, ...]
    watch_every: int = 10
    checkpoint_every: int = 50

    def check(self) -> None:
        """Raises ConfigError where it does not hold together."""
        _check_types(self, "the study")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ConfigError("seeds: give different whole numbers, three or more")
        if self.watch_every < 1 or self.checkpoint_every < 1:
            raise ConfigError("watch_every and checkpoint_every are numbers of steps, 1 or more")
        names = [part.name for part in self.parts]
        if not names or len(set(names)) < len(names):
            raise ConfigError("parts: give one or more, each data set and encoder once")
        for part in self.parts:
            part.check()


def read_config(path: Path) -> Config:
    """The study in a JSON file; raises ConfigError where it is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    config = parse_config(content)
    config.check()
    return config


def parse_config(content: Any) -> Config:
    """A Config from what JSON holds, not yet checked beyond its keys and types."""
    given = _known(Config, content, "the study")
    parts = [_known(Part, part, "a part") for part in _listed(given["parts"])]
    return Config(**{**_frozen(given), "parts": tuple(Part(**_frozen(part)) for part in parts)})


def _known(kind: Callable[..., Any], content: Any, what: str) -> Mapping[str, Any]:
    """`content` if its keys are those of the dataclass `kind`."""
    if not isinstance(content, dict):
        raise ConfigError(f"{what} must be an object with keys, not {content!r}")
    known = fields(kind)  # type: ignore[arg-type]
    needed = {field.name for field in known if field.default is MISSING}
    if unknown := set(content) - {field.name for field in known}:
        raise ConfigError(f"{what} has no key {min(unknown)!r}")
    if missing := needed - set(content):
        raise ConfigError(f"{what} lacks the key {min(missing)!r}")
    return content


def _listed(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ConfigError(f"parts must be a list, not {value!r}")
    return value


def _frozen(content: Mapping[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in content.items()}
