"""The answers as figures: PNGs made from the JSONs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from examples.imbalance.answers import points, scores, settings_of
from examples.imbalance.config import FULL, Config
from examples.imbalance.specs import methods_of
from examples.imbalance.storage import Folder
from mtlkernels.packages import require

NAMES = ("norms", "methods", "costs", "settings")
LEGEND_TASKS = 5
"""More names than that would cover the panel."""


def draw_figures(config: Config, folder: Folder, target: Path) -> list[Path]:
    """Writes the figures into a folder and returns their paths."""
    require("matplotlib", "the study").use("Agg")
    target.mkdir(parents=True, exist_ok=True)
    return [
        _saved(figure, target / f"{name}.png")
        for name, figure in zip(
            NAMES,
            (
                _norms(config, folder),
                _methods(config, folder),
                _costs(config, folder),
                _settings(config, folder),
            ),
            strict=True,
        )
        if figure is not None
    ]


def _norms(config: Config, folder: Folder) -> Any:
    """Excess loss over the gradient norm, and over the angle, each relative to the mean over the
    tasks of its run: a dot a task and run. Two tasks have one angle, which is not drawn.
    """
    found = points(config, folder)
    figure, axes = _panels(2, len(found), width=2.8, height=2.6)
    for column, held in zip(axes.T, found, strict=True):
        column[0].set_title(f"{held.part}\n{held.runs}", fontsize=9)
        drawn = [held.norms, held.angles] if len(held.tasks) > 2 else [held.norms]
        for axis, values in zip(column, drawn, strict=False):
            for task in range(values.shape[1]):
                axis.scatter(
                    values[:, task].tolist(),
                    held.excess[:, task].tolist(),
                    s=9,
                    color=f"C{task % 10}",
                    label=held.tasks[task],
                )
            axis.axhline(0, color="black", linewidth=0.8)
        if len(held.tasks) <= LEGEND_TASKS:
            column[0].legend(fontsize=6)
        column[0].set_xlabel("log weighted norm, relative")
        column[1].set_xlabel("mean angle, degrees, relative")
        if len(drawn) == 1:
            column[1].set(xticks=[], yticks=[], xlabel="two tasks have one angle")
    for row in axes:
        row[0].set_ylabel("log test loss over\nthat alone, relative")
    return figure


def _methods(config: Config, folder: Folder) -> Any:
    """The gain of every method, a dot a seed and a bar at their mean."""
    longest = max(len(part.methods) for part in config.parts)
    figure, axes = _panels(1, len(config.parts), width=3.6, height=1 + 0.2 * longest)
    for axis, part in zip(axes[0], config.parts, strict=True):
        found = scores(config, folder, part)
        order = sorted(found, key=lambda method: found[method].mean)
        for place, method in enumerate(order):
            gains = found[method].gains
            axis.scatter(gains, [place] * len(gains), s=12, color="C0")
            axis.plot([found[method].mean], [place], "|", color="black", markersize=10)
        axis.set_yticks(range(len(order)), order, fontsize=7)
        axis.axvline(0, color="black", linewidth=0.8)
        axis.set_title(part.name, fontsize=9)
        axis.set_xlabel("gain over single-task, %")
    return figure


def _costs(config: Config, folder: Folder) -> Any:
    """Gain over seconds, the grid search with the cost of all its points."""
    figure, axes = _panels(1, len(config.parts), width=3.6, height=3)
    for axis, part in zip(axes[0], config.parts, strict=True):
        for method, held in scores(config, folder, part).items():
            axis.plot([held.seconds], [held.mean], "o", markersize=4)
            axis.annotate(method, (held.seconds, held.mean), fontsize=6)
        axis.set_xscale("log")
        axis.set_title(part.name, fontsize=9)
        axis.set_xlabel("seconds of training")
        axis.set_ylabel("gain, %")
    return figure


def _settings(config: Config, folder: Folder) -> Any | None:
    """The gain in each setting, a line a method."""
    parts = [part for part in config.parts if len(settings_of(part)) > 1]
    if not parts:
        return None
    figure, axes = _panels(1, len(parts), width=3.2, height=3)
    for axis, part in zip(axes[0], parts, strict=True):
        settings = sorted(settings_of(part), key=("half", "pretrained", FULL).index)
        found = [scores(config, folder, part, setting) for setting in settings]
        for method in methods_of(part, settings[0]):
            held = [scores_of[method] for scores_of in found]
            means = [one.mean for one in held]
            axis.errorbar(settings, means, [one.deviation for one in held], label=method, capsize=3)
        axis.axhline(0, color="black", linewidth=0.8)
        axis.set_title(part.name, fontsize=9)
        axis.legend(fontsize=6, frameon=False)
    axes[0, 0].set_ylabel("gain over single-task, %")
    return figure


def _panels(rows: int, columns: int, width: float, height: float) -> tuple[Any, Any]:
    pyplot = require("matplotlib.pyplot", "the study")
    return pyplot.subplots(
        rows,
        columns,
        figsize=(width * columns, height * rows),
        layout="constrained",
        dpi=110,
        squeeze=False,
    )


def _saved(figure: Any, path: Path) -> Path:
    # Without the version of matplotlib in it, the same results give the same file.
    figure.savefig(path, metadata={"Software": None})
    require("matplotlib.pyplot", "the study").close(figure)
    return path
