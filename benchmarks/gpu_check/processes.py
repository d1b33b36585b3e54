"""A stage's process: in a session of its own, with an end that nothing it does can put off."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

GRACE = 3.0  # seconds from SIGINT, at which pytest still tells what it knows, to SIGKILL


@dataclass(frozen=True)
class Ended:
    """How a process ended, and after how many seconds."""

    how: str
    seconds: float

    @property
    def passed(self) -> bool:
        return self.how == "passed"


def run(
    command: Sequence[str], limit: float, log: Path, folder: Path, environment: Mapping[str, str]
) -> Ended:
    """Runs a command; at its limit it and all that it started get SIGINT, and then SIGKILL.

    Args:
        command: program and arguments.
        limit: seconds.
        log: file that its output is appended to.
        folder: the current one of the process.
        environment: all of its variables.
    """
    start = time.monotonic()
    try:
        with log.open("ab") as output:
            process = subprocess.Popen(
                command, cwd=folder, env=environment, start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            )  # fmt: skip
    except OSError as error:
        return Ended(f"could not be started: {error}", time.monotonic() - start)
    try:
        code = process.wait(timeout=max(limit, 0.1))
        how = "passed" if code == 0 else f"failed with status {code}"
    except subprocess.TimeoutExpired:
        how = f"ran out of its {limit:.0f} s"
        _signal(process, signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=GRACE)
    finally:
        _signal(process, signal.SIGKILL)  # also what the process has left running
        process.wait()
    return Ended(how, time.monotonic() - start)


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)
