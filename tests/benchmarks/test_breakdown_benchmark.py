"""benchmarks/breakdown.py prints a row with numbers for each size and dtype."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torchjd")

ROOT = Path(__file__).parents[2]


def test_both_tables_have_their_numbers() -> None:
    script = ROOT / "benchmarks" / "breakdown.py"
    told = subprocess.run(
        [sys.executable, script, "--seconds", "0", "--threads", "1"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ).stdout
    rows = [line.split() for line in told.splitlines()]
    for name in ("lenet", "pinn", "float32", "bfloat16"):
        found = [row for row in rows if row and row[0] == name]
        assert [row[1] for row in found] == ["2", "3", "8"]
        for row in found:
            numbers = [float(number) for number in row[2:]]
            assert numbers[-1] > 0  # a ratio of two times
