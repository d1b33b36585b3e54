"""What was measured and on what: rows, the environment, and both as JSON."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from mtlkernels.dispatch import backends, build_info

PEERS = ("torchjd", "conflictfree", "pytorch_optimizer")


@dataclass(frozen=True)
class Row:
    """One measurement, or why there is none.

    Attributes:
        suite: "steps", "memory", "providers", "stages", "step" or "scaling".
        case, tasks, dtype, method, tensors, numel, threads: of what; numel and tensors of one task.
        name: of the provider, the stage or the part.
        bytes: that have to be moved; 0 where that is not the question.
        seconds: quartiles of one run, or None.
        turns, how: how many times that was taken, and with what: "wall", "cpu", "graph".
        copy: median seconds of a copy of the same bytes, in the same rounds.
        peak, operators, reads: see memory.Observed.
        error: distance from the float64 direction, relative to its norm.
        thread: median seconds of the calling thread, of whole steps, beside those on the wall.
        told: why there is no time; of a whole step how its gradients came about.
    """

    suite: str
    case: str
    tasks: int
    dtype: str
    method: str
    name: str
    tensors: int
    numel: int
    threads: int
    bytes: int = 0
    seconds: tuple[float, float, float] | None = None
    turns: int = 0
    how: str = ""
    copy: float | None = None
    peak: int | None = None
    operators: int | None = None
    reads: int | None = None
    error: float | None = None
    thread: float | None = None
    told: str = ""

    @property
    def median(self) -> float | None:
        """Seconds."""
        return None if self.seconds is None else self.seconds[1]

    @property
    def over_copy(self) -> float | None:
        """The time over that of copying the same bytes."""
        if self.seconds is None or self.copy is None:
            return None
        return self.seconds[1] / self.copy

    @property
    def table(self) -> tuple[str, str, int, str, str]:
        """Rows that share it were measured against each other, turn by turn."""
        return self.suite, self.case, self.tasks, self.dtype, self.method


@dataclass
class Results:
    """All rows of one run."""

    environment: dict[str, Any]
    rows: list[Row] = field(default_factory=list)

    def of(self, suite: str) -> dict[tuple[str, str, int, str, str], list[Row]]:
        """The tables of a suite, in the order in which they were measured."""
        found: dict[tuple[str, str, int, str, str], list[Row]] = {}
        for row in self.rows:
            if row.suite == suite:
                found.setdefault(row.table, []).append(row)
        return found

    def find(self, suite: str, case: str, tasks: int, dtype: str, name: str) -> Row | None:
        """One row, of whatever method comes first."""
        wanted = (suite, case, tasks, dtype, name)
        rows = (r for r in self.rows if (r.suite, r.case, r.tasks, r.dtype, r.name) == wanted)
        return next(rows, None)

    def save(self, path: Path) -> None:
        """Writes JSON, one row a line."""
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = ",\n".join(f"  {json.dumps(_brief(row))}" for row in self.rows)
        environment = json.dumps(self.environment, indent=1)
        path.write_text(
            f'{{"environment": {environment},\n"rows": [\n{rows}\n]}}\n', encoding="utf-8"
        )


def load(path: Path) -> Results:
    """Reads what `save` wrote; raises ValueError where the file is something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        rows = [_row(entry) for entry in content["rows"]]
        return Results(content["environment"], rows)
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} does not hold results of python -m benchmarks") from error


def _row(entry: dict[str, Any]) -> Row:
    seconds = entry.pop("seconds", None)
    return Row(**entry, seconds=None if seconds is None else tuple(seconds))


def _brief(row: Row) -> dict[str, Any]:
    """Without what says nothing; times to four digits, which is more than they are worth."""
    defaults = {f.name: f.default for f in fields(Row)}
    brief = {key: value for key, value in asdict(row).items() if value != defaults[key]}
    for key in ("copy", "error", "thread"):
        if key in brief:
            brief[key] = _rounded(brief[key])
    if "seconds" in brief:
        brief["seconds"] = [_rounded(s) for s in brief["seconds"]]
    return brief


def _rounded(number: float) -> float:
    return float(f"{number:.4g}")


def environment(device: torch.device, command: Iterable[str]) -> dict[str, Any]:
    """What the numbers depend on."""
    facts: dict[str, Any] = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": " ".join(["python -m benchmarks", *(part.split("/")[-1] for part in command)]),
        "commit": _commit(),
        "processor": _processor(),
        "processors": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "device": str(device),
        **build_info(),
        "serves": {op: told["serves"] for op, told in backends()[device.type].items()},
        "peers": {name: _version(name) for name in PEERS},
        "load_before": load_average(),
    }
    if device.type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(device)
        facts["driver"] = _said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return facts


def load_average() -> float | None:
    """Processes that wanted to run, over the last minute; with our own threads in it."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def available_bytes() -> int:
    """Memory that can be had without swapping."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return 1024 * next(int(x.split()[1]) for x in lines if x.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    """Name, family and model: hypervisors often hide the name."""
    facts = {}
    try:
        for line in Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines():
            key, _, value = line.partition(":")
            facts[key.strip()] = value.strip()
    except OSError:
        return platform.processor() or platform.machine()
    name = facts.get("model name", platform.machine())
    return f"{name}, family {facts.get('cpu family', '?')}, model {facts.get('model', '?')}"


def _commit() -> str:
    """Of a checkout, with a word where its files have changed; "" for an installed package."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return ""
    changed = _said("git", "-C", str(root), "status", "--porcelain", "--untracked-files=no")
    head = _said("git", "-C", str(root), "rev-parse", "--short=12", "HEAD")
    return f"{head}{' with changes' if changed else ''}"


def _said(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip()
