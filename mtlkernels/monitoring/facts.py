"""What the diagnosis rests on: means over the run, and from where on a difference counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from torch import Tensor

from mtlkernels.monitoring.records import Record, mean, steps_known

AHEAD = 1.5
"""A task dominates where its norm is so many times the next one's, or its share an equal one's."""
UNLIKE = 3.0
"""Norms are out of balance where the largest is so many times the smallest."""
MOVED = 1.25
"""Imbalance moved where it ends so many times above or below its start."""
OPPOSED = -0.1
"""A mean cosine from here down is a conflict to act on. Unrelated gradients conflict in every other
step too, but at cosines around 0."""


@dataclass(frozen=True)
class Pair:
    """Two tasks: how often their inner product is negative, of how many steps; mean cosine."""

    first: str
    second: str
    rate: float
    steps: int
    cosine: float

    @property
    def name(self) -> str:
        return f"{self.first} / {self.second}"


def ranked(tasks: Sequence[str], values: Tensor) -> list[tuple[str, float]]:
    """The tasks whose number is known, the largest first."""
    known = [(task, x) for task, x in zip(tasks, values.tolist(), strict=True) if x == x]
    return sorted(known, key=lambda entry: -entry[1])


def ratio(values: Tensor) -> float:
    """Largest over smallest of the known numbers above 0; 1 where there are none."""
    known = values[values.isfinite() & (values > 0)]
    if len(known) == 0:
        return 1.0
    return (known.max() / known.min()).item()


def pairs(records: Sequence[Record]) -> list[Pair]:
    """All pairs of which the cosine is known, those that conflict most often first."""
    tasks = records[0]["tasks"]
    rates, cosines = mean(records, "conflicts"), mean(records, "cosines")
    steps = steps_known(records)
    found = [
        Pair(tasks[i], tasks[j], rates[i, j].item(), int(steps[i, j]), cosines[i, j].item())
        for i, j in combinations(range(len(tasks)), 2)
        if cosines[i, j].isfinite() and rates[i, j].isfinite()
    ]
    return sorted(found, key=lambda pair: (-pair.rate, pair.cosine))


def ends(records: Sequence[Record]) -> tuple[float, float] | None:
    """Largest over smallest norm in the first and in the last fifth of the records.

    None where there are too few records, or one end knows no norms.
    """
    reach = -(-len(records) // 5)
    if len(records) < 2:
        return None
    start, end = (mean(part, "norm_ratio") for part in (records[:reach], records[-reach:]))
    return (start.item(), end.item()) if start.isfinite() and end.isfinite() else None


def flags(records: Sequence[Record]) -> list[tuple[str, str, int]]:
    """(task, flag, in how many records it came up), by task."""
    found = []
    for t, task in enumerate(records[0]["tasks"]):
        seen = [flag for record in records for flag in record["status"][t]]
        found += [(task, str(flag), seen.count(flag)) for flag in dict.fromkeys(seen)]
    return found


def never_finite(records: Sequence[Record]) -> list[str]:
    """The tasks of unknown norm for which NON_FINITE came up in every record."""
    counts = {task: count for task, flag, count in flags(records) if flag == "NON_FINITE"}
    norms = zip(records[0]["tasks"], mean(records, "norms").tolist(), strict=True)
    return [task for task, norm in norms if norm != norm and counts.get(task) == len(records)]
