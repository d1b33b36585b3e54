"""A checkout that was built in place but never installed has no package metadata: it must work."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
from pathlib import Path

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
