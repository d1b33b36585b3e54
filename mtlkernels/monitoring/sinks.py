"""Sinks for records: a JSONL file, or the logger of another library."""

from __future__ import annotations

import inspect
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Protocol

SCALARS = ("conflict_rate", "dominated_conflict", "alignment", "norm_ratio", "direction_norm")
VECTORS = ("losses", "norms", "weights", "weighted_norms", "projections", "shares")
MATRICES = ("known", "cosines", "conflicts", "magnitude_similarity", "curvature_bound")
PAIRS = ("pairs", "conflicting_pairs")  # numbers of them, of each part only
PART = ("norms", "cosines", "conflict_rate", *PAIRS)  # of each part


class Sink(Protocol):
    """Takes the records of a `Monitor`."""

    def write(self, record: Mapping[str, Any]) -> None: ...


class JSONL:
    """A file with one JSON object per line, to which a continued run appends.

    A run that continues from the checkpoint of step n also continues its count of steps:

        monitor = Monitor(JSONL("run.jsonl"), step=n)

    Args:
        path: the file; new records are appended.

    Raises:
        ValueError: the path's folder does not exist, or the path is a folder.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = _checked(path)

    def write(self, record: Mapping[str, Any]) -> None:
        """Appends a line, with NaN as null, and closes the file, so that a crash loses nothing."""
        text = json.dumps(_without_nan(record), allow_nan=False) + "\n"
        with self.path.open("a+b") as file:
            _append_line(file, text.encode())


def _checked(path: str | os.PathLike[str]) -> Path:
    path = Path(path)
    if not path.parent.is_dir():
        raise ValueError(f"{path} cannot be written: make the folder {path.parent} first")
    if path.is_dir():
        raise ValueError(f"{path} is a folder: give the name of a file in it")
    return path


def _append_line(file: BinaryIO, line: bytes) -> None:
    """Appends a line, and first ends a line that was cut off."""
    if file.seek(0, os.SEEK_END):
        file.seek(-1, os.SEEK_END)
        line = line if file.read() == b"\n" else b"\n" + line
    file.write(line)


def scalars(record: Mapping[str, Any]) -> dict[str, float]:
    """A record's numbers one by one: `norms/seg`, and a part's `encoder/norms/seg`."""
    return dict(_flat(record))


def check_names(tasks: Sequence[str], parts: Sequence[str]) -> None:
    """Raises ValueError if two numbers of a record would have one name."""
    zeros: dict[str, Any] = dict.fromkeys(SCALARS, 0.0)
    zeros |= dict.fromkeys(VECTORS, [0.0] * len(tasks))
    zeros |= dict.fromkeys(MATRICES, [[0.0] * len(tasks)] * len(tasks))
    part = {name: zeros.get(name, 0.0) for name in PART}
    record = {"tasks": tasks, **zeros, "parts": dict.fromkeys(parts, part)}
    counts = Counter(["step", "steps", *(name for name, _ in _flat(record))])
    name, count = counts.most_common(1)[0]
    if count > 1:
        raise ValueError(
            f"{count} numbers of a record would have the name {name!r}: give the tasks and the "
            "parts names without a slash, or JSONL as the only sink"
        )


def _flat(record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    yield from _named(record, record["tasks"])
    for part, numbers in record.get("parts", {}).items():
        yield from ((f"{part}/{name}", x) for name, x in _named(numbers, record["tasks"]))


def _named(numbers: Mapping[str, Any], tasks: Sequence[str]) -> Iterator[tuple[str, float]]:
    for name in (*SCALARS, *PAIRS):
        if name in numbers:
            yield name, numbers[name]
    for name in VECTORS:
        if name in numbers:
            yield from zip((f"{name}/{task}" for task in tasks), numbers[name], strict=True)
    for name in MATRICES:
        for i, row in enumerate(numbers.get(name, ())):
            others = (f"{name}/{tasks[i]}/{other}" for other in tasks[i + 1 :])
            yield from zip(others, row[i + 1 :], strict=True)


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


class _LogMetrics:
    def __init__(self, logger: Any) -> None:
        self.logger = logger

    def write(self, record: Mapping[str, Any]) -> None:
        self.logger.log_metrics(_known(record), step=record["step"])


class _TrainerLog:
    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def write(self, record: Mapping[str, Any]) -> None:
        self.trainer.log(_known(record))  # which counts the steps itself


def as_sink(sink: Any) -> Sink:
    """Wraps the logger of another library as a sink.

    Raises:
        TypeError: the object is neither a sink nor a logger, as far as its signature shows.
    """
    if isinstance(sink, JSONL):
        return sink
    if not isinstance(sink, type):  # a class's functions take its instance first
        if _takes(getattr(sink, "add_scalar", None), True, "tag", 0.0, 0):
            return _AddScalar(sink)
        if hasattr(sink, "callback_handler") and _takes(getattr(sink, "log", None), False, {}):
            return _TrainerLog(sink)  # of transformers
        if _takes(getattr(sink, "log", None), False, {}, step=0):
            return _Log(sink)
        if _takes(getattr(sink, "log_metrics", None), False, {}, step=0):
            return _LogMetrics(sink)
    raise TypeError(
        f"a sink is a {type(sink).__name__}: give JSONL(path), or something with "
        "add_scalar(tag, value, step), log(numbers, step=step) or log_metrics(numbers, step=step), "
        "or a Trainer of transformers"
    )


def _takes(function: Any, unknown: bool, *args: Any, **kwargs: Any) -> bool:
    """Whether a function accepts these arguments; `unknown` if it has no signature.

    A compiled object with `add_scalar` is a writer; a compiled `log` is a logarithm (`math.log`).
    """
    if not callable(function):
        return False
    try:
        inspect.signature(function).bind(*args, **kwargs)
    except TypeError:
        return False
    except ValueError:
        return unknown
    return True


def _known(record: Mapping[str, Any]) -> dict[str, float]:
    return {name: x for name, x in scalars(record).items() if x == x}  # all but NaN


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nan(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_without_nan(entry) for entry in value]
    return None if isinstance(value, float) and not abs(value) < float("inf") else value
