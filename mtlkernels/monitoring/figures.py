"""Figures of a run from a monitor's records; they need matplotlib, the extra `plot`.

Each function takes records, from `Monitor.flush` or `mtlkernels.monitoring.records.read`, and the
Axes to draw on; without Axes it creates a figure, which `axes.figure.savefig(path)` saves. No
window is opened, and matplotlib's global state does not change.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from mtlkernels.extras import require
from mtlkernels.monitoring.records import Record, column, conflicts_by_part, mean, steps_taken

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STYLES = ("-", "--", ":", "-.")
"""Lines that coincide, as equal weights do, stay apart by their dashes."""
FEW_RECORDS = 30  # up to here each is marked
FEW_TASKS = 8  # up to here cosines are written out, and legends have one column
MANY_TASKS = 16  # from here on some have their names only
LONG_NAME = 20  # letters
FEW_PARTS = 40  # up to here each has its name


def losses(records: Sequence[Record], axes: Axes | None = None) -> Axes:
    """Each task's loss over the steps."""
    return _lines(records, "losses", "loss", axes)


def norms(records: Sequence[Record], axes: Axes | None = None) -> Axes:
    """Norms of the task gradients over the steps, on a logarithmic scale."""
    return _lines(records, "norms", "gradient norm", axes, log=True)


def weights(records: Sequence[Record], axes: Axes | None = None) -> Axes:
    """The tasks' weights over the steps; none for a method with separate weights for each part."""
    return _lines(records, "weights", "weight", axes)


def shares(records: Sequence[Record], axes: Axes | None = None) -> Axes:
    """Each task's share of the direction over the steps; they add up to 1."""
    axes = _lines(records, "shares", "share of the direction", axes)
    axes.axhline(0, color="black", linewidth=0.8)
    return axes


def conflict_rate(records: Sequence[Record], axes: Axes | None = None) -> Axes:
    """Share of the pairs of tasks that conflict, over the steps."""
    axes = _axes(axes)
    rates = column(records, "conflict_rate")
    axes.set(title="conflict rate", xlabel="step", ylim=(-0.03, 1.03))
    if not rates.isfinite().any():
        return _nothing(axes)
    axes.plot(steps_taken(records), rates.tolist(), color="black", marker=_marker(records))
    axes.grid(alpha=0.3)
    return axes


def cosines(records: Sequence[Record], axes: Axes | None = None) -> Axes:
    """Heat map of the cosines between the task gradients, means over the run."""
    axes = _axes(axes)
    tasks, values = records[0]["tasks"], mean(records, "cosines")
    axes.set_title("cosine between gradients")
    if not values.isfinite().any():
        return _nothing(axes)
    image = axes.imshow(values.tolist(), cmap="RdBu", vmin=-1, vmax=1)
    axes.figure.colorbar(image, ax=axes)
    every = -(-len(tasks) // MANY_TASKS)
    places, named = range(0, len(tasks), every), [_short(task) for task in tasks[::every]]
    axes.set_xticks(places, named, rotation=45, ha="right")
    axes.set_yticks(places, named)
    _as_written([*axes.get_xticklabels(), *axes.get_yticklabels()])
    if len(tasks) <= FEW_TASKS:
        for i, row in enumerate(values.tolist()):
            for j, value in enumerate(row):
                colour = "white" if abs(value) > 0.6 else "black"
                axes.text(j, i, f"{value:.2f}", ha="center", va="center", color=colour)
    return axes


def conflict_rate_by_part(records: Sequence[Record], axes: Axes | None = None) -> Axes:
    """Share of the pairs of tasks that conflict in each layer, of those in which both reach it.

    The records are those of a `Monitor(..., parts=names)`; parts with fewer than two tasks are left
    out.
    """
    axes = _axes(axes)
    rates = conflicts_by_part(records)
    parts = list(rates)
    axes.set(title="conflict rate by layer", xlim=(0, 1))
    if not parts:
        return _nothing(axes)
    axes.barh(range(len(parts)), list(rates.values()))
    every = -(-len(parts) // FEW_PARTS)
    size = min(10.0, 200 / min(len(parts), FEW_PARTS))
    axes.set_yticks(range(0, len(parts), every), parts[::every], fontsize=size)
    _as_written(axes.get_yticklabels())
    axes.invert_yaxis()  # the first layer on top
    axes.grid(alpha=0.3, axis="x")
    return axes


def summary(records: Sequence[Record], title: str = "") -> Figure:
    """One page: losses, norms, weights, shares, cosines, and conflicts by layer or over steps."""
    figure = _matplotlib("figure").Figure(figsize=(11, 12), layout="constrained", dpi=110)
    panels = figure.subplots(3, 2).ravel()
    conflicts = conflict_rate_by_part if conflicts_by_part(records) else conflict_rate
    for draw, axes in zip(
        (losses, norms, weights, shares, cosines, conflicts), panels, strict=True
    ):
        draw(records, axes)
    if title:
        figure.suptitle(title, fontweight="bold", parse_math=False)
    return figure


def _lines(
    records: Sequence[Record], name: str, title: str, axes: Axes | None, log: bool = False
) -> Axes:
    """One line per task."""
    axes = _axes(axes)
    values, tasks = column(records, name), records[0]["tasks"]
    axes.set(title=title, xlabel="step")
    if not values.isfinite().any():
        return _nothing(axes)
    steps = steps_taken(records)
    for t in range(len(tasks)):
        axes.plot(
            steps,
            values[:, t].tolist(),
            STYLES[t // 10 % len(STYLES)] if len(tasks) > 10 else STYLES[t % len(STYLES)],
            color=f"C{t % 10}",
            marker=_marker(records),
            markersize=4,
        )
    if log and (values > 0).any():
        axes.set_yscale("log")
    _legend(axes, tasks, values)
    axes.grid(alpha=0.3)
    return axes


def _legend(axes: Axes, tasks: Sequence[str], values: Tensor) -> None:
    """Names the lines, of many tasks those with the largest numbers."""
    order = values.abs().nanmean(dim=0).nan_to_num(-1).argsort(descending=True, stable=True)
    shown = sorted(order[:MANY_TASKS].tolist()) if len(tasks) > MANY_TASKS else range(len(tasks))
    lines = axes.get_lines()
    # Set afterwards: a label that begins with an underscore would be left out.
    legend = axes.legend(
        [lines[t] for t in shown],
        [str(t) for t in shown],
        fontsize="small",
        ncols=-(-len(shown) // FEW_TASKS),
        title=f"the largest of {len(tasks)}" if len(shown) < len(tasks) else None,
    )
    for text, t in zip(legend.get_texts(), shown, strict=True):
        text.set_text(_short(tasks[t]))
    _as_written(legend.get_texts())


def _short(name: str) -> str:
    return name if len(name) <= LONG_NAME else f"{name[: LONG_NAME - 1]}…"


def _axes(axes: Axes | None) -> Axes:
    if axes is not None:
        return axes
    return _matplotlib("figure").Figure(layout="constrained").subplots()


def _nothing(axes: Axes) -> Axes:
    axes.text(0.5, 0.5, "not in these records", ha="center", transform=axes.transAxes)
    return axes


def _marker(records: Sequence[Record]) -> str:
    return "o" if len(records) <= FEW_RECORDS else ""


def _as_written(texts: Iterable[Any]) -> None:
    """A dollar sign in a name begins no formula."""
    for text in texts:
        text.set_parse_math(False)


def _matplotlib(module: str) -> Any:
    """A module of matplotlib's; raises MissingPackageError where it is not installed."""
    return require(f"matplotlib.{module}", "a figure", "plot")
