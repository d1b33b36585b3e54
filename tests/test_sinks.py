"""What files hold after a crash, names that collide, sinks that cannot be written to."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from typing import Any

import pytest
import torch

from mtlkernels import CSV, JSONL, Monitor, Report

TASKS = ("täsk", "b")


def report(tasks: tuple[str, ...] = TASKS) -> Report:
    T = len(tasks)
    eye = torch.eye(T, dtype=torch.float64)
    return Report(tasks, eye, eye[0], None, torch.zeros(T, dtype=torch.int64))


def table(path: Any) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def test_a_row_that_was_cut_off_stays_one_of_its_own(tmp_path) -> None:
    path = tmp_path / "r.csv"
    for _ in range(2):
        Monitor(CSV(path), every=1)(report())
    whole = path.read_bytes()
    row = len(whole.splitlines(keepends=True)[-1])
    for cut in (1, 2, 5, row - 1):  # the first between \r and \n
        path.write_bytes(whole[:-cut])
        Monitor(CSV(path), every=1)(report())
        found = [line for line in table(path) if line]
        assert len(found) == 4, cut
        assert found[-1] == found[1]


def test_a_header_that_was_cut_off_is_written_again(tmp_path) -> None:
    path = tmp_path / "r.csv"
    Monitor(CSV(path), every=1)(report())
    whole = path.read_bytes()
    names = len(whole.splitlines(keepends=True)[0])
    umlaut = whole.index("ä".encode()) + 1
    for length in (0, 1, umlaut, names - 2, names - 1, names):
        path.write_bytes(whole[:length])
        Monitor(CSV(path), every=1)(report())
        assert path.read_bytes() == whole, length


def test_a_table_with_other_line_ends_is_continued(tmp_path) -> None:
    path = tmp_path / "r.csv"
    Monitor(CSV(path), every=1)(report())
    path.write_bytes(path.read_bytes().replace(b"\r\n", b"\n"))
    Monitor(CSV(path), every=1)(report())
    assert len(table(path)) == 3


@pytest.mark.parametrize(
    ("tasks", "parts", "name"),
    [
        (("a", "b/c", "a/b", "c"), (), "known/a/b/c"),
        (("a", "b"), ("x", "x/norms/a"), None),
        (("a", "norms/a"), ("norms",), "norms/norms/a"),
    ],
)
def test_names_that_collide_are_told_at_the_first_step(tasks, parts, name, tmp_path) -> None:
    path = tmp_path / "r.csv"
    monitor = Monitor(CSV(path), JSONL(tmp_path / "r.jsonl"), parts=parts)
    if name is None:
        monitor(report(tasks))
        return
    with pytest.raises(ValueError, match=f"would have the name '{name}'"):
        monitor(report(tasks))
    assert not path.exists()
    alone = Monitor(JSONL(tmp_path / "r.jsonl"), every=1, parts=parts)
    alone(report(tasks))  # where each number stands under its task


def test_no_locale_breaks_a_table_or_the_printed_report(tmp_path) -> None:
    code = (
        "import sys; sys.path[:0] = ['tests']\n"
        "from test_sinks import CSV, JSONL, Monitor, report\n"
        "from mtlkernels.__main__ import main\n"
        f"folder = {str(tmp_path)!r}\n"
        "Monitor(CSV(folder + '/r.csv'), JSONL(folder + '/r.jsonl'), every=1)(report())\n"
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
    assert "norms/täsk" in table(tmp_path / "r.csv")[0]
