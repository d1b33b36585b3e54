"""The text of the report command: what the records of a run say about its tasks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor

from mtlkernels.monitoring import records
from mtlkernels.monitoring.records import Record, mean

AHEAD = 1.5  # a task dominates with this many times the next norm, or an equal share
UNLIKE = 3.0  # norms are far apart where the largest is this many times the smallest
OPPOSED = -0.1  # a mean cosine to act on; unrelated gradients conflict too, at cosines around 0
SHOWN = 10  # pairs, and layers
BROKEN = ("NON_FINITE", "INVALID_LOSS", "INVALID_GRAM")
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def diagnose(run: Sequence[Record]) -> str:
    """The text on a run; `mtlkernels.monitoring.records.mean` gives its numbers.

    Args:
        run: at least one record, of the same tasks, from `mtlkernels.monitoring.records.read`.
    """
    run = [_with_escaped_names(record) for record in run]
    sections = {
        "Tasks": [*_table(run), "", *_dominating(run)],
        "Conflicts": _conflicts(run),
        "Where in the network": _layers(run),
        "Status": _status(run),
        "Try next": [_advice(run)],
    }
    lines = [f"  {line}" for line in _head(run)]
    for heading, body in sections.items():
        lines += ["", heading, *(f"  {line}".rstrip() for line in body)]
    return "\n".join(lines)


def _with_escaped_names(record: Record) -> Record:
    def escaped(name: str) -> str:
        return _CONTROL.sub(lambda found: ascii(found[0])[1:-1], name)

    parts = {escaped(part): numbers for part, numbers in record.get("parts", {}).items()}
    return {**record, "tasks": [escaped(task) for task in record["tasks"]], "parts": parts}


def _head(run: Sequence[Record]) -> list[str]:
    tasks, steps = run[0]["tasks"], records.steps_taken(run)[-1]
    lines = [f"steps: {steps}, records: {len(run)}, tasks: {', '.join(tasks)}"]
    restarts = sum(later["step"] <= earlier["step"] for earlier, later in pairwise(run))
    if restarts:
        lines.append(f"restarts of the step count: {restarts}; the file is read as one run")
    return lines


def _table(run: Sequence[Record]) -> list[str]:
    columns = [mean(run, name).tolist() for name in ("norms", "shares", "weights", "losses")]
    rows = [("task", "norm", "share", "weight", "loss")]
    for task, norm, share, weight, loss in zip(run[0]["tasks"], *columns, strict=True):
        rows.append((task, _number(norm), _percent(share), _number(weight), _number(loss)))
    width, *widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join([row[0].ljust(width), *map(str.rjust, row[1:], widths)]) for row in rows]


def _dominating(run: Sequence[Record]) -> list[str]:
    """One line on the norms, and one on the shares of the direction where they are known."""
    norms, shares = _ranked(run, "norms"), _ranked(run, "shares")
    if len(run[0]["tasks"]) == 1:
        return ["One task: there is nothing to balance."]
    if len(norms) < 2:
        return ["Fewer than two norms are known: a Gram method records those of finite gradients."]
    return [_by_norm(norms), *([_by_share(shares)] if shares else [])]


def _by_norm(norms: list[tuple[str, float]]) -> str:
    silent = ", ".join(task for task, norm in norms if norm == 0)
    silence = f"the gradients of {silent} are zero." if silent else ""
    (first, most), *others = [(task, norm) for task, norm in norms if norm > 0] or [("No task", 0)]
    if not others:
        return f"{first} dominates by norm: {silence}"
    (second, next_most), (last, least) = others[0], others[-1]
    ahead = most >= AHEAD * next_most
    line = f"{first} dominates by norm: its" if ahead else f"No task dominates by norm: {first}'s"
    line += f" gradient is {_number(most / next_most)} times as long as that of {second}"
    if len(others) > 1:
        line += f" and {_number(most / least)} times that of {last}"
    return f"{line}; {silence}" if silence else f"{line}."


def _by_share(shares: list[tuple[str, float]]) -> str:
    (first, most), equal = shares[0], 1 / len(shares)
    line = f"No task dominates the direction: the largest share is {first}'s, {_percent(most)}"
    if most >= AHEAD * equal:
        line = f"{first} dominates the direction: {_percent(most)} of it"
    against = [f"{task} ({_percent(share)})" for task, share in shares if share < -0.005]
    line += f"; an equal share is {_percent(equal)}."
    return f"{line} The direction is against {', '.join(against)}." if against else line


def _conflicts(run: Sequence[Record]) -> list[str]:
    pairs, steps = records.pairs(run), records.steps_taken(run)[-1]
    lines = [
        f"{pair} conflict in {_percent(rate)} of the "
        f"{'' if known == steps else f'{known} known '}steps, mean cosine {cosine:+.2f}"
        for pair, rate, known, cosine in pairs
        if rate > 0
    ]
    none = "No two tasks conflict." if pairs else "Not known: the records hold no cosines."
    return _worst(lines, "more pairs, none more often") or [none]


def _layers(run: Sequence[Record]) -> list[str]:
    if not records.live_parts(run):
        return ["Not known: give the layers as parts= to the step and to Monitor."]
    rates = sorted(records.conflicts_by_part(run).items(), key=lambda entry: -entry[1])
    lines = [f"{_percent(x)} of the pairs conflict in layer {part}" for part, x in rates if x > 0]
    return _worst(lines, "more layers, none with more conflicts") or [
        "No two tasks conflict in a layer."
    ]


def _worst(lines: list[str], rest: str) -> list[str]:
    return [*lines[:SHOWN], *([f"{len(lines) - SHOWN} {rest}"] if len(lines) > SHOWN else [])]


def _status(run: Sequence[Record]) -> list[str]:
    count = len(run)
    return [f"{t}: {flag} in {n} of {count} records" for t, flag, n in records.flags(run)] or [
        "none"
    ]


def _advice(run: Sequence[Record]) -> str:
    """What is broken comes first, then norms far apart, then conflict."""
    norms, lengths = mean(run, "norms"), mean(run, "weighted_norms")
    broken = ", ".join(
        dict.fromkeys(task for task, flag, _ in records.flags(run) if flag in BROKEN)
    )
    first = f"Find the cause of the status of {broken}. Then: " if broken else ""
    if len(norms) == 1:
        return f"{first}Nothing: one task needs no balancing."
    if norms.isfinite().sum() < 2:
        return f"{first}Record steps in which a Gram method, such as Sum(), has finite gradients."
    silent = ", ".join(task for task, norm in _ranked(run, "norms") if norm == 0)
    if silent:
        return f"{first}Find out why no gradient of {silent} reaches the shared parameters."
    far_apart, even = _ratio(norms) >= UNLIKE, _ratio(lengths) < UNLIKE
    even = even and bool(lengths.isfinite().all())
    ideas = ["AvgNorm, as the norms are far apart"] if far_apart and not even else []
    pair, *_, cosine = min(records.pairs(run), key=lambda pair: pair[-1], default=("", 0.0))
    if cosine <= OPPOSED:
        ideas.append(f"PCGrad or CAGrad, as the mean cosine of {pair} is {cosine:.2f}")
    if ideas:
        return f"{first}{'; '.join(ideas)}. Compare on your own validation metrics."
    why = "the weights even the norms out" if far_apart else "the norms are alike"
    return f"{first}Little to gain from balancing: {why}, and no mean cosine is below {OPPOSED}."


def _ranked(run: Sequence[Record], name: str) -> list[tuple[str, float]]:
    """The tasks of which the number is known, the largest first."""
    values = zip(run[0]["tasks"], mean(run, name).tolist(), strict=True)
    return sorted(((task, x) for task, x in values if x == x), key=lambda entry: -entry[1])


def _ratio(values: Tensor) -> float:
    """Largest over smallest of the known numbers above 0; 1 where there are none."""
    known = values[values.isfinite() & (values > 0)]
    return (known.max() / known.min()).item() if len(known) else 1.0


def _number(value: float) -> str:
    return f"{value:.3g}" if value == value else "-"


def _percent(share: float) -> str:
    if share != share:
        return "-"
    if 0 < share < 0.01 or 0.99 < share < 1:
        return "below 1 %" if share < 0.5 else "over 99 %"
    return f"{round(100 * share)} %"
