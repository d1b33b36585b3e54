"""What files hold after a crash, names that collide, sinks that cannot be written to."""

from __future__ import annotations

import logging
import math
import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mtlkernels import JSONL, Monitor, Report
from mtlkernels.monitoring import records
from mtlkernels.monitoring.diagnosis import diagnose

TASKS = ("täsk", "b")


def report(tasks: tuple[str, ...] = TASKS) -> Report:
    T = len(tasks)
    eye = torch.eye(T, dtype=torch.float64)
    return Report(tasks, eye, eye[0], None, torch.zeros(T, dtype=torch.int64))


@pytest.mark.parametrize(
    ("tasks", "parts", "name"),
    [
        (("a", "b/c", "a/b", "c"), (), "known/a/b/c"),
        (("a", "b"), ("x", "x/norms/a"), None),
        (("a", "norms/a"), ("norms",), "norms/norms/a"),
    ],
)
def test_names_that_collide_are_told_at_the_first_step(tasks, parts, name, tmp_path) -> None:
    got: list[Any] = []
    run = SimpleNamespace(log=lambda numbers, step: got.append(numbers))
    monitor = Monitor(run, JSONL(tmp_path / "r.jsonl"), parts=parts)
    if name is None:
        monitor(report(tasks))
        return
    with pytest.raises(ValueError, match=f"would have the name '{name}'"):
        monitor(report(tasks))
    assert not got
    alone = Monitor(JSONL(tmp_path / "r.jsonl"), every=1, parts=parts)
    alone(report(tasks))  # where each number stands under its task


def test_no_locale_breaks_the_printed_report(tmp_path) -> None:
    code = (
        "import sys; sys.path[:0] = ['tests/monitoring', 'tests/helpers']\n"
        "from test_sinks import JSONL, Monitor, report\n"
        "from mtlkernels.__main__ import main\n"
        f"folder = {str(tmp_path)!r}\n"
        "Monitor(JSONL(folder + '/r.jsonl'), every=1)(report())\n"
        "sys.modules['matplotlib.figure'] = None\n"
        "sys.exit(main(['report', folder + '/r.jsonl']))\n"
    )
    ascii_only = os.environ | {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env=ascii_only | {"PYTHONIOENCODING": "ascii"},
        capture_output=True,
        check=False,
    )
    assert ran.returncode == 1, ran.stderr  # without matplotlib
    assert rb"t\xe4sk dominates" in ran.stdout


def test_a_folder_that_is_not_there_is_told_at_once(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"make the folder .*none first"):
        JSONL(tmp_path / "none" / "run")
    with pytest.raises(ValueError, match="is a folder"):
        JSONL(tmp_path)
    JSONL("run")  # in the working folder, and nothing is written yet
    assert not os.path.exists("run")


class Board:
    def add_scalar(self, tag: str, value: float, step: int) -> None: ...


class Fabric:
    def log(self, name: str, value: float, step: int | None = None) -> None: ...


class NoMethods:
    add_scalar = log = 3


@pytest.mark.parametrize("sink", [logging.getLogger(), math, torch, Board, Fabric(), NoMethods()])
def test_what_logs_otherwise_is_no_sink(sink) -> None:
    with pytest.raises(TypeError, match="give JSONL"):
        Monitor(sink)


def test_what_takes_anything_is_a_sink() -> None:
    got: list[Any] = []
    run = SimpleNamespace(log=lambda *args, **kwargs: got.append((args, kwargs)))
    Monitor(run, Board(), every=1)(report())
    (((numbers,), step),) = got
    assert step == {"step": 1}
    assert numbers["norms/b"] == 1


def test_a_sink_that_fails_keeps_the_record_from_no_other(tmp_path) -> None:
    class Full:
        def __init__(self, told: str) -> None:
            self.told = told

        def log(self, numbers: Any, step: int) -> None:
            raise OSError(self.told)

    monitor = Monitor(Full("first"), JSONL(tmp_path / "r.jsonl"), Full("second"), every=1)
    with pytest.raises(OSError, match="first"):
        monitor(report())
    assert len((tmp_path / "r.jsonl").read_text().splitlines()) == 1
    assert monitor.flush() is None


def test_a_continued_run_counts_on(tmp_path) -> None:
    path = tmp_path / "r.jsonl"
    for before, taken in ((0, 3), (3, 4)):
        monitor = Monitor(JSONL(path), every=2, step=before)
        for _ in range(taken):
            monitor(report())
        monitor.flush()
    found = records.read(path)
    assert [(r["step"], r["steps"]) for r in found] == [(2, 2), (3, 1), (4, 1), (6, 2), (7, 1)]
    assert "restarts" not in diagnose(found)
    for step in (-1, 2.0, None):
        with pytest.raises(ValueError, match="steps taken before"):
            Monitor(step=step)


def test_a_logger_of_lightning_and_a_trainer_of_transformers_are_sinks() -> None:
    got: list[Any] = []
    logger = SimpleNamespace(log_metrics=lambda metrics, step=None: got.append((metrics, step)))
    trainer = SimpleNamespace(
        log=lambda logs, start_time=None: got.append((logs, start_time)), callback_handler=None
    )
    Monitor(logger, trainer, every=1)(report())
    (metrics, step), (logs, none) = got
    assert metrics == logs
    assert metrics["norms/b"] == 1
    assert (step, none) == (1, None)
