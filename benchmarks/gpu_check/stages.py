"""The stages in their order: first whether the results are right, then how fast they are made."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec

NATIVE = {"MTLKERNELS_BACKEND": "native"}
TRITON = {"MTLKERNELS_BACKEND": "triton"}
# On the stand-in: Triton's interpreter, and the native library of the CPU.
INTERPRETED = {**TRITON, "TRITON_INTERPRET": "1"}
UNCACHED = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}  # each tensor's own bounds are watched
HERE = "benchmarks.gpu_check"


@dataclass(frozen=True)
class Stage:
    """One process of the check.

    Attributes:
        name: short, for files and --stages.
        seconds: limit.
        command: program and arguments.
        environment: variables besides those that every stage gets.
        native: needs the CUDA library, and is skipped where that does not load.
    """

    name: str
    seconds: float
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    native: bool = False


def _module(name: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", f"{HERE}.{name}", *arguments]


def _pytest(*tests: str) -> list[str]:
    parallel = ["-n", "8"] if find_spec("xdist") else []
    return [
        *(sys.executable, "-m", "pytest", "-q", "-p", f"{HERE}.plugin", "-p", "no:cacheprovider"),
        # The suite's own runs of the sanitizers take minutes; they have stages here.
        *("-m", "gpu", "-k", "not sanitizer", "-r", "fE", "--tb=short", *parallel, *tests),
    ]


def _sanitizer(tool: str) -> list[str]:
    found = shutil.which("compute-sanitizer")
    if found is None:
        return _module("short_program")  # on the stand-in: that it runs at all
    return [
        *(found, "--tool", tool, "--report-api-errors", "no", "--error-exitcode", "9"),
        *_module("short_program"),
    ]


def on_gpu() -> list[Stage]:
    """All of them, 380 seconds at most."""
    tests = ["step", "streams", "solvers", ""]
    files = [f"tests/gpu/test_gpu{'_' if name else ''}{name}.py" for name in tests]
    return [
        Stage("facts", 15, _module("facts")),
        Stage("ops", 25, _pytest("tests/gpu/test_gpu_ops.py"), NATIVE, native=True),
        Stage("native-tests", 60, _pytest(*files), NATIVE, native=True),
        Stage("native-rows", 30, _module("rows", "--seconds", "26"), NATIVE, native=True),
        Stage("solver-rows", 15, _module("solvers", "--seconds", "11"), NATIVE, native=True),
        Stage("triton-tests", 45, _pytest(*files, "tests/gpu/test_gpu_ops.py"), TRITON),
        Stage("triton-rows", 20, _module("rows", "--seconds", "16"), TRITON),
        Stage("steps", 60, _module("steps", "--seconds", "52")),
        *(
            Stage(tool, limit, _sanitizer(tool), UNCACHED, native=True)
            for tool, limit in (("memcheck", 30), ("racecheck", 20), ("synccheck", 20))
        ),
        Stage("peers", 40, _module("peers", "--seconds", "34")),
    ]


def on_stand_in() -> list[Stage]:
    """The same on the CPU in their shortest form: that every line of them can run."""
    short = {"triton-tests": _pytest("tests/gpu/test_gpu_ops.py")}
    return [
        Stage(
            stage.name,
            120,
            short.get(stage.name, stage.command),
            INTERPRETED if stage.environment == TRITON else {},
        )
        for stage in on_gpu()
        if stage.name not in ("racecheck", "synccheck")  # memcheck's program
    ]
