"""What a person gets who does not install a wheel: a built checkout without metadata, an sdist."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

import mtlkernels

UNINSTALLED = """
import importlib.metadata
def unknown(name): raise importlib.metadata.PackageNotFoundError(name)
importlib.metadata.distribution = unknown
import mtlkernels
print(mtlkernels.__file__, mtlkernels.__version__, mtlkernels.build_info()["torch"])
"""


def test_import_without_metadata(tmp_path: Path) -> None:
    package = Path(mtlkernels.__file__).parent
    shutil.copytree(package, tmp_path / "mtlkernels", ignore=shutil.ignore_patterns("__pycache__"))
    done = subprocess.run(
        [sys.executable, "-c", UNINSTALLED],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    where, version, _ = done.stdout.split()
    assert where == str(tmp_path / "mtlkernels" / "__init__.py")
    assert version == mtlkernels.__version__


def test_the_constant_is_the_packages_version() -> None:
    assert importlib.metadata.version("mtlkernels") == mtlkernels.__version__


ROOT = Path(__file__).parent.parent


def test_an_sdist_holds_what_it_builds_and_tests_with(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "setup.py", "-q", "egg_info", "--egg-base", str(tmp_path)),
            *("sdist", "--formats=tar", "--dist-dir", str(tmp_path)),
        ],
        env={**os.environ, "MTLKERNELS_NO_EXT": "1", "PYTHONWARNINGS": "ignore"},
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with tarfile.open(tmp_path / f"mtlkernels-{mtlkernels.__version__}.tar") as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    folders = ("mtlkernels", "csrc", "tests", "benchmarks", "examples", "studies")
    suffixes = {".py", ".cpp", ".h", ".inl", ".cu", ".cuh"}
    wanted = {
        path.relative_to(ROOT).as_posix()
        for folder in folders
        for path in (ROOT / folder).rglob("*")
        if path.suffix in suffixes
    }
    assert wanted | {"Makefile", "pyproject.toml", "setup.py"} <= held
    assert not [name for name in held if name.endswith((".so", ".pyc"))]


@pytest.mark.skipif(shutil.which("make") is None, reason="no make")
@pytest.mark.parametrize(
    ("arguments", "environment"),
    [
        ([], ".venv"),
        (["TORCH=torch==2.10.0"], ".venv-python3-torch2.10.0"),
        (["TORCH=torch==2.14.1", "PYTHON=/usr/bin/python3.12"], ".venv-python3.12-torch2.14.1"),
    ],
)
def test_another_torch_has_an_environment_of_its_own(
    arguments: list[str], environment: str
) -> None:
    """Else `make test TORCH=...` would run on the torch of the last time, without a word."""
    inherited = {k: v for k, v in os.environ.items() if k not in ("TORCH", "PYTHON", "MAKEFLAGS")}
    done = subprocess.run(
        ["make", "--no-print-directory", "-n", "-B", "test", *arguments],
        cwd=ROOT, env=inherited, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert f"-m venv {environment}\n" in done.stdout, done.stderr
    assert done.stdout.strip().endswith(f"{environment}/bin/python -m pytest")
