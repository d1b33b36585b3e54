"""Where the CPU path is meant to end up, and where a run finds it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from benchmarks.suite.providers import OURS
from benchmarks.suite.results import Results, Row

LARGE = 10_000_000  # elements from which the bandwidth decides
MOST_EXTRA = 1_000_000  # bytes beside the direction
TORCHJD = ("torchjd", "torchjd optimized Gram")


@dataclass(frozen=True)
class Target:
    """One line: what is measured, the bound, and what each table says.

    `bound` is a most where `at_most`, else a least; `found` maps the name of a table to its number.
    """

    measure: str
    bound: float
    at_most: bool
    found: dict[str, float]
    unit: str = ""

    @property
    def worst(self) -> tuple[str, float] | None:
        """The table that is furthest from the bound, and its number."""
        if not self.found:
            return None
        pick = max if self.at_most else min
        return pick(self.found.items(), key=lambda item: item[1])

    @property
    def missed(self) -> dict[str, float]:
        """The tables beyond the bound."""
        return {
            name: value
            for name, value in self.found.items()
            if (value > self.bound if self.at_most else value < self.bound)
        }


def targets(results: Results) -> list[Target]:
    """All of them, in the order in which they matter."""
    tables = list(results.of("providers").values())
    few, many = (2, 3, 4, 8), (20, 40)
    over_copy = "gram + weights + combine over a copy of the same bytes"
    step = {f"{k[1]}, T = {k[2]}": _share(rows) for k, rows in results.of("step").items()}
    return [
        Target(
            f"{over_copy}, float32, N >= 10 M, T = 2 to 8", 1.15, True,
            _each(tables, _over_copy, dtype="float32", tasks=few, least=LARGE),
        ),
        Target(
            "the same, T = 20 and 40", 2.0, True,
            _each(tables, _over_copy, dtype="float32", tasks=many, least=LARGE),
        ),
        Target(
            "the same, bfloat16, T = 2 to 8", 1.3, True,
            _each(tables, _over_copy, dtype="bfloat16", tasks=few, least=LARGE),
        ),
        Target(
            "torchjd's better mode over ours, ResNet-18 and ViT-B, T = 2 to 8", 3.0, False,
            _each(tables, _torchjd, cases=("resnet18", "vit_b"), dtype="float32", tasks=few),
        ),
        Target(
            "torchjd's better mode over ours, LeNet and PINN, T = 2 to 8", 8.0, False,
            _each(tables, _torchjd, cases=("lenet", "pinn"), dtype="float32", tasks=few),
        ),
        Target(
            "the paper's PCGrad loop over ours, ResNet-18, T = 3", 25.0, False,
            _each(tables, _textbook, cases=("resnet18",), dtype="float32", tasks=(3,)),
        ),
        Target(
            "the same, T = 8", 40.0, False,
            _each(tables, _textbook, cases=("resnet18",), dtype="float32", tasks=(8,)),
        ),
        Target("peak extra memory beside the direction", 1.0, True, _each(tables, _extra), "MB"),
        Target(
            "balancing in a whole training step, dense maps, T = 3", 3.0, True,
            {name: share for name, share in step.items() if name == "dense maps, T = 3"}, "%",
        ),
    ]  # fmt: skip


def _each(
    tables: Iterable[list[Row]],
    number: Callable[[list[Row]], float | None],
    *,
    cases: tuple[str, ...] = (),
    dtype: str = "",
    tasks: tuple[int, ...] = (),
    least: int = 0,
) -> dict[str, float]:
    found = {}
    for rows in tables:
        row = rows[0]
        if row.method != "pcgrad" or row.numel < least:
            continue
        if (cases and row.case not in cases) or (dtype and row.dtype != dtype):
            continue
        if tasks and row.tasks not in tasks:
            continue
        value = number(rows)
        if value is not None and math.isfinite(value):
            kind = "" if dtype else f", {row.dtype}"
            found[f"{row.case}, T = {row.tasks}{kind}"] = value
    return found


def median_of(rows: list[Row], name: str) -> float | None:
    """Seconds of one provider of a table."""
    return next((row.median for row in rows if row.name == name), None)


def times_ours(rows: list[Row], *names: str) -> float | None:
    """How many times ours the fastest of some providers takes."""
    mine = median_of(rows, OURS)
    others = [s for name in names if (s := median_of(rows, name)) is not None]
    return min(others) / mine if mine is not None and others else None


def _over_copy(rows: list[Row]) -> float | None:
    return next((row.over_copy for row in rows if row.name == OURS), None)


def _torchjd(rows: list[Row]) -> float | None:
    return times_ours(rows, *TORCHJD)


def _textbook(rows: list[Row]) -> float | None:
    return times_ours(rows, "textbook loop")


def _extra(rows: list[Row]) -> float | None:
    """MB beyond the flat direction, of the public function, which allocates it."""
    row = next((r for r in rows if r.name == "ours aggregate()"), None)
    if row is None or row.peak is None:
        return None
    size = row.bytes // ((2 * row.tasks + 1) * row.numel)
    return max(0, row.peak - size * row.numel) / 1e6


def _share(rows: list[Row]) -> float:
    total = sum(row.median or 0 for row in rows)
    return 100 * next(row.median or 0 for row in rows if row.name == "balancing") / total
