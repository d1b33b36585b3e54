"""The CUDA sources on the CPU, under sanitizers: numbers, memory, and races between threads.

The headers in cuda_on_cpu replace CUDA's and run one thread per CUDA thread. They do not show the
memory order, the scheduling or the speed of a GPU.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from cuda_tools import compiled, compiler

FOLDER = Path(__file__).parent / "cuda_on_cpu"
FLAGS = ["-std=c++20", "-O1", "-g1", "-pthread", "-ffp-contract=off", f"-I{FOLDER}"]
WARNINGS = ["-Wall", "-Werror", "-Wno-unknown-pragmas"]
SANITIZERS = {
    "memory": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "threads": ["-fsanitize=thread"],
}


@pytest.mark.parametrize("sanitizer", SANITIZERS)
@pytest.mark.parametrize("program", ["lists", "rows", "states", "solvers", "blocks"])
def test_program(program: str, sanitizer: str) -> None:
    source = FOLDER / f"{program}.cpp"
    at_once = ["-DBLOCKS_AT_ONCE"] if program == "blocks" else []
    flags = [*FLAGS, *at_once, *WARNINGS, *SANITIZERS[sanitizer]]
    binary, _ = compiled(f"{program}_{sanitizer}", [compiler(), *flags, str(source)])
    done = subprocess.run([binary], capture_output=True, text=True, timeout=300, check=False)
    told = (done.stdout + done.stderr)[-6000:]
    assert done.returncode == 0, told
    checks = re.search(r"(\d+) checks, 0 failed", done.stdout)
    assert checks, told
    assert int(checks[1]) > 100
