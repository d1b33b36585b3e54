"""Results as text for a terminal."""

from __future__ import annotations

from benchmarks.choices import GRADIENTS, PLAIN
from benchmarks.suite.results import Results, Row

Cells = list[str]


def text(results: Results) -> str:
    """Every table of every suite."""
    parts = [_environment(results)]
    for key, rows in results.of("steps").items():
        parts.append(_titled(key, rows, [WHOLE_HEAD, *whole_steps(rows)]))
    for model, table in memory_tables(results).items():
        parts.append(
            "\n".join([f"memory: {model}, MB at the peak and over a plain step", *aligned(table)])
        )
    for key, rows in results.of("providers").items():
        parts.append(
            _titled(key, rows, [_PROVIDER_HEAD, *map(_provider, rows, [rows] * len(rows))])
        )
    for key, rows in results.of("stages").items():
        parts.append(_titled(key, rows, [_STAGE_HEAD, *map(_stage, rows)]))
    for key, rows in results.of("step").items():
        parts.append(_titled(key, rows, [_STEP_HEAD, *_step(rows)]))
    scaling = [row for row in results.rows if row.suite == "scaling"]
    if scaling:
        lines = aligned([_SCALING_HEAD, *map(_scaling, scaling)])
        parts.append("\n".join([f"ours as it grows, float32, {scaling[0].method}", *lines]))
    return "\n\n".join(parts) + "\n"


def milliseconds(seconds: float) -> str:
    """Three digits, or microseconds to one behind the point."""
    value = seconds * 1e3
    return f"{value:.3f}" if value < 1 else f"{value:.2f}" if value < 10 else f"{value:.1f}"


def ratio(value: float) -> str:
    """Of two times."""
    return f"{value:.2f}" if value < 10 else f"{value:.0f}"


def aligned(lines: list[Cells]) -> list[str]:
    """The first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip()
        for line in lines
    ]


def _environment(results: Results) -> str:
    facts = results.environment
    told = ("processor", "threads", "device", "gpu", "torch", "commit", "load_before", "load_after")
    return ", ".join(f"{key} {facts[key]}" for key in told if facts.get(key) not in (None, ""))


def _titled(key: tuple[str, str, int, str, str], rows: list[Row], lines: list[Cells]) -> str:
    suite, case, tasks, dtype, method = key
    first = rows[0]
    size = f"{first.tensors} tensors, N = {first.numel:,}"
    moved = f", {first.bytes / 1e6:.1f} MB moved" if suite == "providers" else ""
    told = [f"  {row.name}: {row.told}" for row in rows if row.told]
    title = f"{suite}: {case}, T = {tasks}, {dtype}, {method}: {size}{moved}"
    return "\n".join([title, *aligned(lines), *told])


WHOLE_HEAD = [
    *("", "thread ms", "wall ms", "quartiles", "x plain", "x T gradients", "MB", "x plain"),
    "from ours",
]


def whole_steps(rows: list[Row]) -> list[Cells]:
    """Whole steps: times over the plain step and over the T gradients alone, memory, distance."""
    medians = {row.name: row.thread or row.median for row in rows}
    plain_peak = next((row.peak for row in rows if row.name == PLAIN), None)
    lines = []
    for row in rows:
        if row.seconds is None:
            lines.append([row.name, "-", *[""] * (len(WHOLE_HEAD) - 2)])
            continue
        low, median, high = row.seconds
        bases = [medians.get(PLAIN), medians.get(GRADIENTS)]
        lines.append(
            [
                row.name,
                "" if row.thread is None else milliseconds(row.thread),
                milliseconds(median),
                f"{milliseconds(low)} - {milliseconds(high)}",
                *("" if base is None else f"{(row.thread or median) / base:.2f}" for base in bases),
                "" if row.peak is None else f"{row.peak / 1e6:.2f}",
                "" if not row.peak or not plain_peak else f"{row.peak / plain_peak:.2f}",
                "" if row.error is None else f"{row.error:.0e}",
            ]
        )
    return lines


def memory_tables(results: Results) -> dict[str, list[Cells]]:
    """By model: a line for each way to take a step, two cells for each number of tasks."""
    rows = [row for row in results.rows if row.suite == "memory"]
    tables = {}
    for model in dict.fromkeys(row.case for row in rows):
        peaks = {(row.name, row.tasks): row.peak for row in rows if row.case == model}
        counts = dict.fromkeys(tasks for _, tasks in peaks)
        lines = [["", *(cell for T in counts for cell in (f"T = {T}", "x plain"))]]
        for name in dict.fromkeys(name for name, _ in peaks):
            cells = [name]
            for tasks in counts:
                peak, base = peaks.get((name, tasks)), peaks.get((PLAIN, tasks))
                cells.append("-" if peak is None else f"{peak / 1e6:.1f}")
                cells.append("" if peak is None or not base else f"{peak / base:.2f}")
            lines.append(cells)
        tables[model] = lines
    return tables


_PROVIDER_HEAD = [
    *("", "median ms", "quartiles", "turns", "GB/s", "x copy", "x ours"),
    *("peak MB", "operators", "host reads", "error"),
]


def _provider(row: Row, rows: list[Row]) -> Cells:
    if row.seconds is None:
        return [row.name, "-", *[""] * (len(_PROVIDER_HEAD) - 2)]
    low, median, high = row.seconds
    mine = next((r.median for r in rows if r.name == "ours"), None)
    return [
        row.name,
        milliseconds(median),
        f"{milliseconds(low)} - {milliseconds(high)}",
        str(row.turns),
        f"{row.bytes / median / 1e9:.1f}",
        "" if row.over_copy is None else ratio(row.over_copy),
        "" if mine is None else ratio(median / mine),
        "" if row.peak is None else f"{row.peak / 1e6:.2f}",
        "" if row.operators is None else str(row.operators),
        "" if row.reads is None else str(row.reads),
        "" if row.error is None else f"{row.error:.0e}",
    ]


_STAGE_HEAD = ["", "median ms", "quartiles", "GB/s", "x copy", "peak MB", "operators", "host reads"]


def _stage(row: Row) -> Cells:
    assert row.seconds is not None
    low, median, high = row.seconds
    return [
        row.name,
        milliseconds(median),
        f"{milliseconds(low)} - {milliseconds(high)}",
        f"{row.bytes / median / 1e9:.1f}" if row.bytes else "",
        "" if row.over_copy is None else ratio(row.over_copy),
        f"{(row.peak or 0) / 1e6:.2f}",
        str(row.operators),
        str(row.reads),
    ]


_STEP_HEAD = ["", "median ms", "quartiles", "share"]


def _step(rows: list[Row]) -> list[Cells]:
    total = sum(row.median or 0 for row in rows)
    lines = []
    for row in rows:
        assert row.seconds is not None
        low, median, high = row.seconds
        spread = f"{milliseconds(low)} - {milliseconds(high)}"
        lines.append([row.name, milliseconds(median), spread, f"{100 * median / total:.1f} %"])
    return lines


_SCALING_HEAD = ["axis", "N", "T", "tensors", "threads", "median ms", "GB/s", "x copy"]


def _scaling(row: Row) -> Cells:
    sizes = [row.case, f"{row.numel:,}", str(row.tasks), f"{row.tensors:,}", str(row.threads)]
    if row.median is None:
        return [*sizes, row.told, "", ""]
    rate = row.bytes / row.median / 1e9
    return [*sizes, milliseconds(row.median), f"{rate:.1f}", ratio(row.over_copy or 0)]
