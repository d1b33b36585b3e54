"""One figure: gradient norms, weights and cosines over the steps of every run."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from examples.demo.problem import Problem
from examples.demo.training import Run
from mtlkernels.extras import require

ROWS = ("gradient norm", "weight", "cosine")
STYLES = ("-", "--", ":")
"""Lines that coincide, as equal weights do, stay apart by their dashes."""


def save_figure(path: Path, results: list[tuple[Problem, list[Run]]]) -> Path:
    """Draw every run of every data set into one PNG and return its path."""
    require("matplotlib").use("Agg")
    pyplot = require("matplotlib.pyplot")
    columns = max(len(runs) for _, runs in results)
    figure = pyplot.figure(
        figsize=(3.4 * columns + 1.6, 6.6 * len(results)), layout="constrained", dpi=110
    )
    blocks = figure.subfigures(len(results), 1, squeeze=False)[:, 0]
    for block, (problem, runs) in zip(blocks, results, strict=True):
        _draw_block(block, problem, runs)
    figure.savefig(path)
    pyplot.close(figure)
    return path


def _draw_block(block: Any, problem: Problem, runs: list[Run]) -> None:
    """Three rows of panels, one column a run, with a legend at the end of each row."""
    tasks = [task.name for task in problem.tasks]
    pairs = list(combinations(range(len(tasks)), 2))
    pair_names = [f"{tasks[i]} / {tasks[j]}" for i, j in pairs]
    axes = block.subplots(len(ROWS), len(runs), sharex=True, sharey="row", squeeze=False)
    for column, run in zip(axes.T, runs, strict=True):
        column[0].set_title(run.method)
        _draw_lines(column[0], run.norms, tasks, first_colour=0)
        _draw_lines(column[1], run.weights, tasks, first_colour=0)
        cosines = torch.stack([run.cosines[:, i, j] for i, j in pairs], dim=1)
        _draw_lines(column[2], cosines, pair_names, first_colour=len(tasks))
        column[2].axhline(0, color="black", linewidth=0.8)
        column[2].set_xlabel("step")
    axes[0, 0].set_yscale("log")
    axes[1, 0].set_yscale("log")
    for row, label in zip(axes, ROWS, strict=True):
        row[0].set_ylabel(label)
        row[-1].legend(loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False)
    block.suptitle(f"{problem.name}: each step (pale) and the running mean", fontweight="bold")


def _draw_lines(axis: Any, values: Tensor, names: list[str], first_colour: int) -> None:
    """One colour a column of `values` (S, lines): the steps pale, their running mean strong."""
    means = _running_mean(values)
    for line, name in enumerate(names):
        colour = f"C{first_colour + line}"
        axis.plot(values[:, line].tolist(), color=colour, alpha=0.25, linewidth=0.8)
        style = STYLES[line % len(STYLES)]
        axis.plot(means[:, line].tolist(), style, color=colour, linewidth=1.6, label=name)
    axis.grid(alpha=0.3)


def _running_mean(values: Tensor) -> Tensor:
    """Mean of (S, lines) over up to a tenth of the steps around each step."""
    reach = max(1, len(values) // 20)
    return torch.stack(
        [
            values[max(0, step - reach) : step + reach + 1].nanmean(dim=0)
            for step in range(len(values))
        ]
    )
