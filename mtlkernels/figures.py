"""Pictures of a run from a monitor's records; they need matplotlib, the extra `plot`.

Each function takes records, as `Monitor.flush` gives them or `mtlkernels.records.read` reads them
from a `JSONL` file, and the Axes to draw on; without Axes it makes a figure of its own, which
`axes.figure.savefig(path)` saves. No window is opened and no global state of matplotlib is touched.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from mtlkernels.records import Record, column, live_parts, mean, steps_taken

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STYLES = ("-", "--", ":", "-.")
"""Lines that coincide, as equal weights do, stay apart by their dashes."""
FEW_RECORDS = 30  # up to here each is marked
FEW_TASKS = 8  # up to here cosines are written out, and legends have one column
FEW_PARTS = 40  # up to here each has its name


def losses(records: Sequence[Record], axes: Axes | None = None) -> Axes:
    """Each task's loss over the steps."""
    return _lines(records, "losses", "loss", axes)


def norms(records: Sequence[Record], axes: Axes | None = None) -> Axes:
    """Norms of the tasks' gradients over the steps, on a logarithmic scale."""
    return _lines(records, "norms", "gradient norm", axes, log=True)


def weights(records: Sequence[Record], axes: Axes | None = None) -> Axes:
    """The tasks' weights over the steps; those of a method that weighs parts apart are not one."""
    return _lines(records, "weights", "weight", axes)


def shares(records: Sequence[Record], axes: Axes | None = None) -> Axes:
    """Each task's part in the direction over the steps; they add up to 1."""
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
    """Heat map of the cosines between the tasks' gradients, means over the run."""
    axes = _axes(axes)
    tasks, values = records[0]["tasks"], mean(records, "cosines")
    axes.set_title("cosine between gradients")
    if not values.isfinite().any():
        return _nothing(axes)
    image = axes.imshow(values.tolist(), cmap="RdBu", vmin=-1, vmax=1)
    axes.figure.colorbar(image, ax=axes)
    axes.set_xticks(range(len(tasks)), tasks, rotation=45, ha="right")
    axes.set_yticks(range(len(tasks)), tasks)
    _as_written([*axes.get_xticklabels(), *axes.get_yticklabels()])
    if len(tasks) <= FEW_TASKS:
        for i, row in enumerate(values.tolist()):
            for j, value in enumerate(row):
                colour = "white" if abs(value) > 0.6 else "black"
                axes.text(j, i, f"{value:.2f}", ha="center", va="center", color=colour)
    return axes


def conflict_rate_by_part(records: Sequence[Record], axes: Axes | None = None) -> Axes:
    """Share of the pairs of tasks that conflict in each layer, means over the run.

    The records are of a `Monitor(..., parts=names)`; parts that no task reaches are left out.
    """
    axes = _axes(axes)
    parts = live_parts(records)
    axes.set(title="conflict rate by layer", xlim=(0, 1))
    if not parts:
        return _nothing(axes)
    rates = [mean(records, "conflict_rate", part).item() for part in parts]
    axes.barh(range(len(parts)), rates)
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
    conflicts = conflict_rate_by_part if live_parts(records) else conflict_rate
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
    """One line a task."""
    axes = _axes(axes)
    values, tasks = column(records, name), records[0]["tasks"]
    axes.set(title=title, xlabel="step")
    if not values.isfinite().any():
        return _nothing(axes)
    steps = steps_taken(records)
    for t, task in enumerate(tasks):
        axes.plot(
            steps,
            values[:, t].tolist(),
            STYLES[t // 10 % len(STYLES)] if len(tasks) > 10 else STYLES[t % len(STYLES)],
            color=f"C{t % 10}",
            marker=_marker(records),
            markersize=4,
            label=task,
        )
    if log and (values > 0).any():
        axes.set_yscale("log")
    legend = axes.legend(fontsize="small", ncols=-(-len(tasks) // FEW_TASKS))
    _as_written(legend.get_texts())
    axes.grid(alpha=0.3)
    return axes


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
    """A module of matplotlib's.

    Raises:
        ModuleNotFoundError: it is not installed; the sentence says how to.
    """
    try:
        return import_module(f"matplotlib.{module}")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "matplotlib":
            raise
        raise ModuleNotFoundError(
            "figures need matplotlib, which is not installed: pip install 'mtlkernels[plot]'",
            name=error.name,
        ) from error
