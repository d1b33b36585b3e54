"""Records to sentences: which task dominates, which conflict and where, what to try next."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from itertools import pairwise

from mtlkernels.monitoring.advice import next_step
from mtlkernels.monitoring.facts import (
    AHEAD,
    MOVED,
    UNLIKE,
    ends,
    flags,
    never_finite,
    pairs,
    ranked,
)
from mtlkernels.monitoring.records import (
    Record,
    conflicts_by_part,
    live_parts,
    mean,
    steps_taken,
    unbiased,
)

SHOWN = 10  # pairs, and layers


def diagnose(records: Sequence[Record]) -> str:
    """A page of words on a run; its numbers are `mtlkernels.monitoring.records.mean`'s.

    Args:
        records: at least one, of the same tasks, from `mtlkernels.monitoring.records.read`.
    """
    records = [_on_one_line(record) for record in records]
    sections = {
        "": _head(records),
        "Tasks": [*_table(records), "", *_dominating(records), *_moved(records)],
        "Conflicts": _conflicts(records),
        "Where in the network": _where(records),
        "Status": _status(records),
        "Try next": [next_step(records)],
    }
    told = []
    for heading, lines in sections.items():
        told += [*([f"\n{heading}"] if heading else []), *(f"  {line}".rstrip() for line in lines)]
    return "\n".join(told)


def _on_one_line(record: Record) -> Record:
    """With the line breaks and other control characters in the names escaped."""
    parts = {_escaped(part): numbers for part, numbers in record.get("parts", {}).items()}
    return {**record, "tasks": [_escaped(task) for task in record["tasks"]], "parts": parts}


def _escaped(name: str) -> str:
    return "".join(
        letter.encode("unicode_escape").decode()
        if unicodedata.category(letter) in ("Cc", "Zl", "Zp")
        else letter
        for letter in name
    )


def _head(records: Sequence[Record]) -> list[str]:
    tasks = records[0]["tasks"]
    lines = [
        f"{_count(steps_taken(records)[-1], 'step')} in {_count(len(records), 'record')}, "
        f"{_count(len(tasks), 'task')}: {', '.join(tasks)}"
    ]
    steps = [record["step"] for record in records]
    again = sum(later <= earlier for earlier, later in pairwise(steps))
    if again:
        lines.append(
            f"The count of steps starts again {_count(again, 'time')}: the file holds a continued "
            "run, or several; all of it is taken as one."
        )
    if unbiased(records):
        lines.append(
            'With gram="unbiased" norms, shares, cosines and conflicts are estimates of what they '
            "would be without the noise of the batch, not those of the gradients themselves; a "
            "task's estimate may be below 0, and its norm is then 0."
        )
    return lines


def _table(records: Sequence[Record]) -> list[str]:
    rows = [("task", "norm", "share", "weight", "loss")]
    columns = [mean(records, name).tolist() for name in ("norms", "shares", "weights", "losses")]
    for task, norm, share, weight, loss in zip(records[0]["tasks"], *columns, strict=True):
        rows.append((task, _number(norm), _percent(share), _number(weight), _number(loss)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    ]


def _dominating(records: Sequence[Record]) -> list[str]:
    """Who dominates by norm, and by share of the direction."""
    tasks = records[0]["tasks"]
    if len(tasks) == 1:
        return ["One task: there is nothing to balance."]
    norms = ranked(tasks, mean(records, "norms"))
    if len(norms) < 2:
        return [_no_norms(records)]
    return [_by_norm(norms, unbiased(records)), *_by_share(ranked(tasks, mean(records, "shares")))]


def _no_norms(records: Sequence[Record]) -> str:
    bad = never_finite(records)
    if bad:
        return (
            "The norms of two tasks' gradients are in none of these records: in each of them "
            f"NON_FINITE came up for {', '.join(bad)}."
        )
    return (
        "No norms of the tasks' gradients are in these records: a loss method takes one backward "
        "and sees none, and a row method may need none. Record some steps with a Gram method, for "
        "example Sum()."
    )


def _by_norm(norms: list[tuple[str, float]], estimated: bool) -> str:
    (first, most), (second, next_most), (last, least) = norms[0], norms[1], norms[-1]
    if most == 0:
        if estimated:
            return "No signal beyond the noise was seen in any task's gradient."
        return "All gradients are zero."
    if next_most == 0:
        others = "the gradients of all other tasks are zero"
        if estimated:
            others = "no signal beyond the noise was seen in the gradients of all other tasks"
        return f"{first} dominates by norm: {others}."
    if least == 0 and estimated:
        silent = [task for task, norm in norms if norm == 0]
        return (
            f"{first} has the longest gradient, {_times(most / next_most)} as long as that of "
            f"{second}; no signal beyond the noise was seen for {', '.join(silent)}."
        )
    told = f"its gradient is {_times(most / next_most)} as long as that of {second}"
    if most >= AHEAD * next_most:
        if len(norms) > 2:
            told += f" and {_far(most, least)} that of {last}"
        return f"{first} dominates by norm: {told}."
    if most < UNLIKE * least:
        return f"No task dominates by norm: {first} is {_far(most, least)} as long as {last}."
    return (
        f"No one task dominates by norm: {first} is only {_times(most / next_most)} as long as "
        f"{second}, but {_far(most, least)} as long as {last}."
    )


def _by_share(shares: list[tuple[str, float]]) -> list[str]:
    """A sentence on the direction, none where the shares are not known."""
    if not shares:
        return []
    (first, most), equal = shares[0], 1 / len(shares)
    if most >= AHEAD * equal:
        told = f"{first} dominates the direction: {_percent(most)} of it"
    else:
        told = f"No task dominates the direction: the largest part is {first}'s, {_percent(most)}"
    against = [f"{task} ({_percent(share)})" for task, share in shares if share < -0.005]
    told += f", where an equal part is {_percent(equal)}."
    if against:
        told += f" It runs against {' and '.join(against)}."
    return [told]


def _moved(records: Sequence[Record]) -> list[str]:
    """How the imbalance moved over the run."""
    found = ends(records)
    if found is None or len(records[0]["tasks"]) < 2:
        return []
    start, end = found
    moved = (
        "grew" if end > MOVED * start else "shrank" if start > MOVED * end else "stayed as it was"
    )
    return [
        f"Over the run the imbalance {moved}: largest over smallest norm {_number(start)} in the "
        f"first fifth of the records, {_number(end)} in the last."
    ]


def _conflicts(records: Sequence[Record]) -> list[str]:
    found = pairs(records)
    if not found:
        return ["Not known: these records hold no cosines between two tasks."]
    conflicting = [pair for pair in found if pair.rate > 0]
    if not conflicting:
        return ["No two tasks conflicted in any step that is known."]
    steps = steps_taken(records)[-1]
    lines = [
        f"{pair.name} conflict in {_percent(pair.rate)} of {_of_steps(pair.steps, steps)}, "
        f"mean cosine {pair.cosine:+.2f}."
        for pair in conflicting[:SHOWN]
    ]
    if len(conflicting) > SHOWN:
        lines.append(f"{len(conflicting) - SHOWN} more pairs conflict, none more often.")
    hardest = min(found, key=lambda pair: pair.cosine)
    if len(found) > 1 and hardest.cosine < 0:
        lines.append(f"Most opposed are {hardest.name}, at a mean cosine of {hardest.cosine:+.2f}.")
    return lines


def _of_steps(known: int, steps: int) -> str:
    return "the steps" if known == steps else f"the {known} steps in which it is known"


def _where(records: Sequence[Record]) -> list[str]:
    """Layers by how often pairs of tasks that both reach them conflict there."""
    if not live_parts(records):
        return [
            "Not known: take the steps with parts=, and Whole(method) to change nothing else, and "
            "give Monitor(..., parts=names)."
        ]
    found = conflicts_by_part(records)
    rates = sorted(((rate, part) for part, rate in found.items() if rate > 0), reverse=True)
    lines = [
        f"{_percent(rate)} of the pairs conflict in the layer {part}."
        for rate, part in rates[:SHOWN]
    ]
    if len(rates) > SHOWN:
        lines.append(f"{len(rates) - SHOWN} more layers have conflicts, the fewest {rates[-1][1]}.")
    return lines or ["In no layer two tasks conflicted."]


def _status(records: Sequence[Record]) -> list[str]:
    lines = [
        f"{task}: {flag} came up in {count} of {_count(len(records), 'record')}."
        for task, flag, count in flags(records)
    ]
    return lines or ["Nothing came up."]


def _far(most: float, least: float) -> str:
    return _times(most / least) if least > 0 else "infinitely many times"


def _times(ratio: float) -> str:
    return f"{_number(ratio)} times"


def _number(value: float) -> str:
    return f"{value:.3g}" if value == value else "-"


def _percent(share: float) -> str:
    if share != share:
        return "-"
    if 0 < share < 0.01 or 0.99 < share < 1:
        return "below 1 %" if share < 0.5 else "over 99 %"
    return f"{round(100 * share)} %"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
