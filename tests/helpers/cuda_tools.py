"""Compiles C++ and CUDA for the tests, once for each state of the sources."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CACHE = ROOT / "build" / "tests"
READ_BY_COMPILERS = (".h", ".cuh", ".cu", ".cpp", ".inl")


def state_of_sources(*extra: str) -> str:
    """A key that changes with any C++ or CUDA source and with the commands."""
    digest = hashlib.sha256("\0".join(extra).encode())
    folders = (ROOT / "csrc", ROOT / "tests" / "csrc" / "cuda_on_cpu")
    for path in sorted(p for folder in folders for p in folder.rglob("*")):
        if path.suffix in READ_BY_COMPILERS:
            digest.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:20]


def compiled(name: str, command: list[str]) -> tuple[Path, str]:
    """The output of `command + ["-o", output]`, and what it printed; fails where it cannot."""
    key = state_of_sources(*command)
    output, printed = CACHE / f"{name}.{key}", CACHE / f"{name}.{key}.txt"
    if not printed.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        for old in CACHE.glob(f"{name}.*"):
            old.unlink()
        unfinished = CACHE / f"{name}.unfinished"
        done = subprocess.run(
            [*command, "-o", str(unfinished)], capture_output=True, text=True, cwd=ROOT, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        unfinished.rename(output)
        printed.write_text(done.stdout + done.stderr)
    return output, printed.read_text()


def compiler() -> str:
    found = shutil.which(os.environ.get("CXX", "g++"))
    if found is None:
        pytest.skip("no C++ compiler: install g++ or set CXX")
    return found


def nvcc() -> str:
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    found = shutil.which("nvcc", path=f"{home}/bin") or shutil.which("nvcc")
    if found is None:
        pytest.skip("no nvcc: install the CUDA toolkit, or set CUDA_HOME")
    return found
