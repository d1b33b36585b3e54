"""The answers as figures: PNGs made from the JSONs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from mtlkernels.extras import require
from studies.imbalance.answers import PAPERS_RULE, Points, points, scores, settings_of
from studies.imbalance.config import FULL, Config
from studies.imbalance.specs import methods_of
from studies.imbalance.storage import Folder

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
    rows: dict[str, list[Points]] = {}
    for held in points(config, folder):
        rows.setdefault(held.part, []).append(held)
    figure, axes = _panels(len(rows), 2 * max(map(len, rows.values())), width=3.4, height=2.6)
    for axis in axes.flat:
        axis.set_axis_off()
    for row, (part, found) in zip(axes, rows.items(), strict=True):
        for k, held in enumerate(found):
            told = f"{part}, {held.runs.split(':')[0]}"
            _dots(row[2 * k], held, held.norms, told, "log weighted norm, relative")
            if len(held.tasks) > 2:
                _dots(row[2 * k + 1], held, held.angles, told, "mean angle, degrees, relative")
        row[0].set_ylabel("log test loss over\nthat alone, relative")
        if len(found[0].tasks) <= LEGEND_TASKS:
            row[0].legend(fontsize=6)
    return figure


def _dots(axis: Any, held: Points, values: Tensor, title: str, label: str) -> None:
    axis.set_axis_on()
    for task, name in enumerate(held.tasks):
        x, y = values[:, task].tolist(), held.excess[:, task].tolist()
        axis.scatter(x, y, s=9, color=f"C{task % 10}", label=name)
    axis.axhline(0, color="black", linewidth=0.8)
    axis.set_title(title, fontsize=9)
    axis.set_xlabel(label)


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
    """Gain over seconds, the grid search with the cost of all its points; few dots have names."""
    figure, axes = _panels(1, len(config.parts), width=3.6, height=3)
    ticker = require("matplotlib.ticker", "the study")
    for axis, part in zip(axes[0], config.parts, strict=True):
        found = scores(config, folder, part)
        best = max(found, key=lambda method: found[method].mean)
        for method, held in found.items():
            named = method in (best, "equal", "grid", PAPERS_RULE)
            axis.plot([held.seconds], [held.mean], "o", markersize=4, color="C0" if named else "C7")
            if named:
                place = (held.seconds, held.mean)
                axis.annotate(method, place, (4, 4), textcoords="offset points", fontsize=7)
        axis.margins(x=0.15, y=0.1)
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
        axis.xaxis.set_minor_formatter(ticker.NullFormatter())
        axis.set_title(part.name, fontsize=9)
        axis.set_xlabel("seconds of training")
        axis.set_ylabel("gain, %")
    return figure


def _settings(config: Config, folder: Folder) -> Any | None:
    """The gain in each setting, a colour a method."""
    parts = [part for part in config.parts if len(settings_of(part)) > 1]
    if not parts:
        return None
    figure, axes = _panels(1, len(parts), width=3.2, height=3)
    for axis, part in zip(axes[0], parts, strict=True):
        settings = sorted(settings_of(part), key=("half", "pretrained", FULL).index)
        found = [scores(config, folder, part, setting) for setting in settings]
        for k, method in enumerate(methods_of(part, settings[0])):
            held = [scores_of[method] for scores_of in found]
            means, spread = [one.mean for one in held], [one.deviation for one in held]
            places = [place + 0.08 * k for place in range(len(settings))]  # bars side by side
            axis.errorbar(places, means, spread, fmt="o", label=method, capsize=3, markersize=4)
        axis.set_xticks(range(len(settings)), settings)
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
