"""Where records go: files of our own, or what another library logs with."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

SCALARS = ("conflict_rate", "norm_ratio", "direction_norm")
VECTORS = ("losses", "norms", "weights", "weighted_norms", "projections", "shares")
MATRICES = ("known", "cosines", "conflicts", "magnitude_similarity", "curvature_bound")
PART = ("norms", "cosines", "conflict_rate")  # of each part


class Sink(Protocol):
    """What takes a record, see `Monitor`."""

    def write(self, record: Mapping[str, Any]) -> None: ...


class JSONL:
    """A file with one JSON object a line; an interrupted run's is continued.

    Args:
        path: it is appended to.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def write(self, record: Mapping[str, Any]) -> None:
        """Appends a line, NaN as null, and closes the file: nothing is lost by a crash."""
        text = json.dumps(_without_nan(record), allow_nan=False) + "\n"
        with self.path.open("a+b") as file:
            if file.tell():  # a line that was cut off stays one of its own
                file.seek(-1, os.SEEK_END)
                text = text if file.read() == b"\n" else "\n" + text
            file.write(text.encode())


class CSV:
    """A table with a column a number: `norms/seg`, `cosines/seg/depth`, `conflict_rate`.

    Args:
        path: it is appended to.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def write(self, record: Mapping[str, Any]) -> None:
        """Appends a row, and before the first one the names of the columns.

        Raises:
            ValueError: the file has other columns.
        """
        row = {"step": record["step"], "steps": record["steps"], **scalars(record)}
        with self.path.open("a+", newline="") as file:
            file.seek(0)
            columns = next(csv.reader(file), None)
            if columns not in (None, list(row)):
                raise ValueError(
                    f"{self.path} has other columns than this record, of other tasks or parts: use "
                    "a file for each run"
                )
            file.seek(0, os.SEEK_END)
            writer = csv.DictWriter(file, fieldnames=list(row))
            if columns is None:
                writer.writeheader()
            writer.writerow(row)


def scalars(record: Mapping[str, Any]) -> dict[str, float]:
    """A record's numbers one by one: `norms/seg`, and a part's `encoder/norms/seg`."""
    flat = _flat(record, record["tasks"])
    for part, numbers in record.get("parts", {}).items():
        flat |= {f"{part}/{name}": x for name, x in _flat(numbers, record["tasks"]).items()}
    return flat


def _flat(numbers: Mapping[str, Any], tasks: list[str]) -> dict[str, float]:
    flat = {name: numbers[name] for name in SCALARS if name in numbers}
    for name in VECTORS:
        if name in numbers:
            flat |= {f"{name}/{task}": x for task, x in zip(tasks, numbers[name], strict=True)}
    for name in MATRICES:
        for i, row in enumerate(numbers.get(name, ())):
            others = zip(tasks[i + 1 :], row[i + 1 :], strict=True)
            flat |= {f"{name}/{tasks[i]}/{other}": x for other, x in others}
    return flat


class _AddScalar:
    def __init__(self, writer: Any) -> None:
        self.writer = writer

    def write(self, record: Mapping[str, Any]) -> None:
        for name, number in _known(record).items():
            self.writer.add_scalar(name, number, record["step"])


class _Log:
    def __init__(self, run: Any) -> None:
        self.run = run

    def write(self, record: Mapping[str, Any]) -> None:
        self.run.log(_known(record), step=record["step"])


def as_sink(sink: Any) -> Sink:
    """A sink of ours, around what another library logs with.

    Raises:
        TypeError: it is neither.
    """
    if isinstance(sink, CSV | JSONL):
        return sink
    if hasattr(sink, "add_scalar"):
        return _AddScalar(sink)
    if hasattr(sink, "log"):
        return _Log(sink)
    raise TypeError(
        f"a sink is a {type(sink).__name__}: give JSONL(path), CSV(path), or something with "
        "add_scalar(tag, value, step) or log(numbers, step)"
    )


def _known(record: Mapping[str, Any]) -> dict[str, float]:
    return {name: x for name, x in scalars(record).items() if x == x}  # all but NaN


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nan(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_without_nan(entry) for entry in value]
    return None if isinstance(value, float) and not abs(value) < float("inf") else value
