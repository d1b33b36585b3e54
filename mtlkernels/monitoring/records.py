"""A monitor's records, read from a `JSONL` file, and their means over the run."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mtlkernels.monitoring.sinks import MATRICES, PART, SCALARS, VECTORS

Record = Mapping[str, Any]


def read(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Reads the records of a file, at least one.

    Raises:
        ValueError: the file does not exist or cannot be read, has no record, a line that is not a
            record, or records of different tasks or parts; the message names the line.
    """
    path = Path(path)
    try:
        lines = path.read_text("utf-8").splitlines()
    except FileNotFoundError:
        raise ValueError(
            f"{path} does not exist: give a file that JSONL(path) wrote; a Monitor writes every k "
            "steps and at its flush()"
        ) from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not text: give a file that JSONL(path) wrote") from None
    found: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            record = _parsed(line, f"{path}, line {number}")
            _check_alike(found[0] if found else record, record, f"{path}, line {number}")
            found.append(record)
    if not found:
        raise ValueError(f"{path} is empty: give a file that JSONL(path) wrote")
    return found


def _parsed(line: str, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where} is broken, it is not JSON ({error}): remove it") from None
    wrong = _wrong(record)
    if wrong:
        raise ValueError(f"{where} is not a record of a Monitor: {wrong}")
    return record


def _wrong(record: Any) -> str | None:
    """Says why an object is not a record; None if it is one."""
    if not isinstance(record, dict):
        return "it is not a JSON object"
    for name in ("step", "steps"):
        number = record.get(name)
        if not isinstance(number, int) or isinstance(number, bool) or number < 1:
            return f"{name} is not a positive integer"
    for name in ("tasks", "status"):
        if not isinstance(record.get(name), list):
            return f"it has no list of {name}"
    T = len(record["tasks"])
    if T == 0 or not _names(record["tasks"]):
        return "its tasks are not names"
    if len(record["status"]) != T or not all(map(_names, record["status"])):
        return "status is not a list of flags per task"
    for name in (*VECTORS, *MATRICES, *SCALARS):
        if not _fits(record.get(name, ...), _shape(name, T)):
            return f"{name} is missing or does not fit its {T} tasks"
    parts = record.get("parts", {})
    if not isinstance(parts, dict):
        return "its parts are not a JSON object"
    for part, numbers in parts.items():
        for name in PART:
            if not (isinstance(numbers, dict) and _fits(numbers.get(name, ...), _shape(name, T))):
                return f"{name} of the part {part} is missing or does not fit its {T} tasks"
    return None


def _names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _shape(name: str, T: int) -> tuple[int, ...]:
    return (T, T) if name in MATRICES else (T,) if name in VECTORS else ()


def _fits(value: Any, shape: tuple[int, ...]) -> bool:
    """Whether a value consists of numbers or null, nested in this shape."""
    if not shape:
        return value is None or (isinstance(value, int | float) and not isinstance(value, bool))
    return (
        isinstance(value, list)
        and len(value) == shape[0]
        and all(_fits(entry, shape[1:]) for entry in value)
    )


def _check_alike(first: Record, record: Record, where: str) -> None:
    for name, have, want in (
        ("tasks", record["tasks"], first["tasks"]),
        ("parts", [*record.get("parts", {})], [*first.get("parts", {})]),
    ):
        if have != want:
            raise ValueError(
                f"{where} is of the {name} {', '.join(have) or '(none)'}, those before are of "
                f"{', '.join(want) or '(none)'}: use a file for each"
            )


def column(records: Sequence[Record], name: str, part: str | None = None) -> Tensor:
    """(R, ...) float64: one number of all R records, of a part or of the whole; NaN for null."""
    found = [record if part is None else record["parts"][part] for record in records]
    return torch.tensor([_with_nan(numbers[name]) for numbers in found], dtype=torch.float64)


def mean(records: Sequence[Record], name: str, part: str | None = None) -> Tensor:
    """The mean of a number over the run's records; NaN if it is never known.

    A number from the Gram matrix is weighted by the steps in which it is `known`; losses, weights
    and numbers of parts by all steps of their record, even if their own mean is over fewer.
    """
    values = column(records, name, part)
    steps = torch.tensor([record["steps"] for record in records], dtype=torch.float64)
    steps = steps.view(-1, *[1] * (values.dim() - 1))
    if part is None:
        steps = steps * _share_known(records, name)
    known = values.isfinite()
    total = torch.where(known, values, 0.0) * steps
    return total.sum(dim=0) / (known * steps).sum(dim=0)


def _share_known(records: Sequence[Record], name: str) -> Tensor:
    """(R, ...), or 1: the share of each record's steps in which a number is known."""
    known = column(records, "known")
    if name in ("norms", "weighted_norms"):
        return known.diagonal(dim1=1, dim2=2)
    if name in ("projections", "shares"):  # a NaN in K spoils those of all tasks
        return known.amin(dim=(1, 2))[:, None]
    if name in ("dominated_conflict", "alignment", "norm_ratio", "direction_norm"):
        return known.amin(dim=(1, 2))
    if name == "conflict_rate":  # of the pairs that are known, one or more
        return (known.tril(-1) if known.shape[1] > 1 else known).amax(dim=(1, 2))
    return known if name in MATRICES and name != "known" else torch.ones(())


def steps_known(records: Sequence[Record]) -> Tensor:
    """(T, T) in how many of the run's steps a pair's cosine is known, or a task's norm."""
    steps = torch.tensor([record["steps"] for record in records], dtype=torch.float64)
    return (column(records, "known") * steps[:, None, None]).sum(dim=0).round()


def steps_taken(records: Sequence[Record]) -> list[int]:
    """R numbers of steps since the first: like `step`, but growing on in a continued run."""
    taken, total = [], 0
    for record in records:
        total += record["steps"]
        taken.append(total)
    return taken


def live_parts(records: Sequence[Record]) -> list[str]:
    """Names of the parts in which some task had a gradient."""
    parts = records[0].get("parts", {})
    return [part for part in parts if (column(records, "norms", part) > 0).any()]


def pairs(records: Sequence[Record]) -> list[tuple[str, float, int, float]]:
    """(pair, conflict rate, known steps, mean cosine), those that conflict most often first."""
    tasks, steps = records[0]["tasks"], steps_known(records)
    rates, cosines = mean(records, "conflicts"), mean(records, "cosines")
    pairs = [
        (f"{tasks[i]} / {tasks[j]}", rates[i, j].item(), int(steps[i, j]), cosines[i, j].item())
        for i, j in combinations(range(len(tasks)), 2)
        if cosines[i, j].isfinite() and rates[i, j].isfinite()
    ]
    return sorted(pairs, key=lambda pair: (-pair[1], pair[3]))


def flags(records: Sequence[Record]) -> list[tuple[str, str, int]]:
    """(task, flag, in how many records it came up), by task."""
    result = []
    for t, task in enumerate(records[0]["tasks"]):
        seen = [flag for record in records for flag in record["status"][t]]
        result += [(task, str(flag), seen.count(flag)) for flag in dict.fromkeys(seen)]
    return result


def conflicts_by_part(records: Sequence[Record]) -> dict[str, float]:
    """Part -> share of the pairs that conflict there, among those in which both tasks reach it.

    A task's head, which no other task reaches, has no pairs and is left out.
    """
    rates = {}
    steps = torch.tensor([record["steps"] for record in records], dtype=torch.float64)
    for part in records[0].get("parts", {}):
        pairs = (steps * column(records, "pairs", part)).sum()
        if pairs > 0:
            conflicting = (steps * column(records, "conflicting_pairs", part)).sum()
            rates[part] = (conflicting / pairs).item()
    return rates


def _with_nan(value: Any) -> Any:
    if isinstance(value, list):
        return [_with_nan(entry) for entry in value]
    return torch.nan if value is None else value
