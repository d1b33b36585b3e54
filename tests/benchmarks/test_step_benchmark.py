"""benchmarks/step.py prints a row with numbers for each choice."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROWS = (
    "plain step",
    "rows",
    'collect="batched"',
    'apply="backward"',
    "measure=last shared layer",
    "features=z",
    "Splitter",
    "every=10, reusing step",
    "every=10, on average",
    "torchjd mtl_backward",
    "torchjd backward",
    "torchjd autogram",
)
EXACT = ('collect="batched"', 'apply="backward"', "every=10, reusing step")


@pytest.mark.slow
def test_table_of_the_demo_network() -> None:
    arguments = ["--models", "lenet", "--tasks", "2", "--threads", "1", "--seconds", "0.01"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "step.py"), *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert any(line.startswith("lenet, T = 2: 21,330 shared parameters") for line in lines)
    for name in ROWS:
        (cells,) = (line[26:].split() for line in lines if line[:26].rstrip() == name)
        assert all(float(cells[i]) > 0 for i in (0, 4, 5, 6)), name
        if name in EXACT:
            assert float(cells[7]) < 1e-5, name
