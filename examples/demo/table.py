"""The demo's result as text: one line a method, and what each column means."""

from __future__ import annotations

import textwrap

from examples.demo.metrics import delta_m
from examples.demo.problem import Problem
from examples.demo.timing import REPEATS
from examples.demo.training import Run

PARTS = ("forward", "backward", "balancing", "update", "total")
WIDTH = 100

CONVENTION = (
    "mean over the tasks of the metric's relative drop against single-task training, in percent; "
    "lower is better, below 0 beats it (the sign of Nash-MTL and CAGrad, which LibMTL reverses)"
)
NOTES = (
    "single-task: the same encoder with one head, the same start, batches and number of steps.",
    "norms: largest over smallest gradient norm at the shared parameters, median over steps.",
    "conflict: share of task pairs with a negative cosine, mean over the steps.",
    f"ms: a step's parts, medians over {REPEATS} extra steps, each waited for; one CPU thread.",
    "The data is tiny and there is one seed: this shows the machine at work, not a ranking.",
)
"""What holds for every table."""


def problem_delta(problem: Problem, metrics: dict[str, float], single: dict[str, float]) -> float:
    """`delta_m` of a run's metrics by task name against the single-task ones, in percent."""
    return delta_m(
        [metrics[task.name] for task in problem.tasks],
        [single[task.name] for task in problem.tasks],
        [task.higher_is_better for task in problem.tasks],
    )


def format_table(problem: Problem, runs: list[Run], single: dict[str, float]) -> str:
    """The table of one data set; `single` holds the baselines' metrics by task."""
    header = _header(problem)
    lines = [*header, _single_line(problem, single)]
    lines += [_run_line(problem, run, single) for run in runs]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rows = [
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip()
        for line in lines
    ]
    rule = "-" * max(map(len, rows))
    metrics = ", ".join(f"{task.name} {task.metric}" for task in problem.tasks)
    return "\n".join(
        [
            textwrap.fill(f"{problem.name}: {problem.caption}", WIDTH),
            rule,
            *rows[: len(header)],
            rule,
            *rows[len(header) :],
            rule,
            textwrap.fill(f"metrics: {metrics}.", WIDTH),
            textwrap.fill(f"delta_m: {CONVENTION}.", WIDTH),
        ]
    )


def _header(problem: Problem) -> list[list[str]]:
    names = [task.name for task in problem.tasks]
    directions = ["higher" if task.higher_is_better else "lower" for task in problem.tasks]
    units = [
        ", ".join(filter(None, (task.unit, direction)))
        for task, direction in zip(problem.tasks, directions, strict=True)
    ]
    return [
        ["method", *names, "delta_m", "norms", "conflict", *PARTS],
        ["", *units, "%, lower", "ratio", "share", *["ms"] * len(PARTS)],
    ]


def _single_line(problem: Problem, single: dict[str, float]) -> list[str]:
    metrics = [f"{single[task.name]:.3f}" for task in problem.tasks]
    return ["single-task", *metrics, "0 (base)", *["-"] * (2 + len(PARTS))]


def _run_line(problem: Problem, run: Run, single: dict[str, float]) -> list[str]:
    return [
        run.method,
        *(f"{run.metrics[task.name]:.3f}" for task in problem.tasks),
        f"{problem_delta(problem, run.metrics, single):+.1f}",
        f"{run.norm_ratio:.1f}",
        f"{run.conflict_rate:.2f}",
        *(f"{getattr(run.split, part):.1f}" for part in PARTS),
    ]
