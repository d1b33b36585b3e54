"""Three figures: what the others take over ours, how near a copy we are, the parts of a step."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.suite.pages import NAMES
from benchmarks.suite.results import Results, Row
from benchmarks.suite.targets import TORCHJD, times_ours

OTHERS = {
    "torchjd, better mode": TORCHJD,
    "stack + matmul": ("stack + matmul",),
    "torch._foreach": ("torch._foreach",),
    "conflictfree": ("conflictfree",),
    "pytorch_optimizer": ("pytorch_optimizer",),
    "the paper's loop": ("textbook loop",),
}
# Told apart by people who do not see red and green alike (Okabe and Ito's palette).
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")


class NothingToDrawError(ValueError):
    """The results hold no rows of a figure."""


def save_figures(results: Results, folder: Path) -> list[Path]:
    """Draws what the results hold into PNG files of a folder; returns their paths.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    import_module("matplotlib").use("Agg")
    pyplot = import_module("matplotlib.pyplot")
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    for name, draw in FIGURES.items():
        figure, axes = pyplot.subplots(figsize=(8, 4.4), layout="constrained", dpi=110)
        try:
            draw(axes, results)
        except NothingToDrawError:
            continue
        finally:
            pyplot.close(figure)
        path = folder / f"{name}.png"
        figure.savefig(path, metadata={"Software": None})
        drawn.append(path)
    return drawn


def _tables(results: Results) -> list[list[Row]]:
    """The comparisons of PCGrad that have a time of ours."""
    found = []
    for key, rows in results.of("providers").items():
        if key[4] == "pcgrad" and any(row.name == "ours" and row.seconds for row in rows):
            found.append(rows)
    return found


def _speedup(axes: Any, results: Results) -> None:
    """Groups of bars: each case and T, each provider's time over ours."""
    tables = [rows for rows in _tables(results) if rows[0].dtype == "float32"]
    tables = [rows for rows in tables if times_ours(rows, *TORCHJD) is not None]
    # Of each case the fewest, the most, and what lies between where it is three tasks.
    tables = [rows for rows in tables if rows[0].tasks in (2, 3, 8)][:12]
    if not tables:
        raise NothingToDrawError
    width = 0.8 / len(OTHERS)
    for k, ((name, providers), colour) in enumerate(zip(OTHERS.items(), COLOURS, strict=True)):
        values = [times_ours(rows, *providers) or 0 for rows in tables]
        places = [i + (k - (len(OTHERS) - 1) / 2) * width for i in range(len(tables))]
        axes.bar(places, values, width, label=name, color=colour)
    axes.axhline(1, color="black", linewidth=1)
    axes.set_yscale("log")
    axes.set_ylabel("time over ours")
    names = [f"{NAMES[rows[0].case]}\nT = {rows[0].tasks}" for rows in tables]
    axes.set_xticks(range(len(tables)), names, fontsize=7, rotation=40)
    axes.legend(fontsize=7, ncols=6, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    axes.set_title("PCGrad, gradients to direction: 10 is ten times slower than ours", pad=22)
    axes.grid(axis="y", alpha=0.3)


def _bandwidth(axes: Any, results: Results) -> None:
    """Lines over T: a copy's time over ours, for cases that no cache holds."""
    lines: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for rows in _tables(results):
        row = next(row for row in rows if row.name == "ours")
        if row.numel >= 1_000_000 and row.over_copy:
            lines.setdefault((row.case, row.dtype), []).append((row.tasks, 1 / row.over_copy))
    if not lines:
        raise NothingToDrawError
    for k, ((case, dtype), places) in enumerate(lines.items()):
        tasks, shares = zip(*sorted(places), strict=True)
        style = "--s" if dtype == "bfloat16" else "-o"
        label = f"{NAMES[case]}, {dtype}"
        axes.plot(tasks, shares, style, label=label, color=COLOURS[k % len(COLOURS)])
    axes.axhline(1, color="black", linewidth=1)
    axes.set_xscale("log", base=2)
    ticks = sorted({tasks for places in lines.values() for tasks, _ in places})
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set_xlabel("T")
    axes.set_ylabel("share of a copy's bandwidth")
    axes.legend(fontsize=7, ncols=2, frameon=False)
    axes.set_title("gram + weights + combine: 1 is as fast as torch copies the same bytes")
    axes.grid(alpha=0.3)


def _step(axes: Any, results: Results) -> None:
    """A bar a model: forward, backward, balancing, update."""
    tables = list(results.of("step").values())
    if not tables:
        raise NothingToDrawError
    names = [f"{rows[0].case}, T = {rows[0].tasks}" for rows in tables]
    left = [0.0] * len(tables)
    for k, part in enumerate(row.name for row in tables[0]):
        totals = [sum(row.median or 0 for row in rows) for rows in tables]
        values = [
            100 * next(row.median or 0 for row in rows if row.name == part) / total
            for rows, total in zip(tables, totals, strict=True)
        ]
        bars = axes.barh(names, values, left=left, label=part, color=COLOURS[k])
        axes.bar_label(
            bars, [f"{v:.1f} %" if v >= 8 else "" for v in values], label_type="center", fontsize=8
        )
        left = [start + value for start, value in zip(left, values, strict=True)]
    axes.set_xlabel("share of the step, %")
    axes.legend(fontsize=8, ncols=4, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    axes.set_title("a whole training step", pad=26)
    axes.invert_yaxis()


FIGURES: dict[str, Callable[[Any, Results], None]] = {
    "speedup": _speedup,
    "bandwidth": _bandwidth,
    "step": _step,
}
