"""What `make gpu-prepare` has made, put in its place: libraries, Triton's cache, packages."""

from __future__ import annotations

import os
import shutil
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / ".gpu"  # travels with the checkout; git ignores it
LIBRARIES, TRITON_CACHE, PACKAGES = "lib", "triton", "site"


def put_in_place(folder: Path = FOLDER, package: Path = ROOT / "mtlkernels") -> list[str]:
    """Copies the prepared libraries of this Python into the package; returns their names."""
    copied = []
    for library in ("_C", "_C_cuda"):
        name = f"{library}{EXTENSION_SUFFIXES[0]}"
        if (folder / LIBRARIES / name).exists():
            shutil.copy2(folder / LIBRARIES / name, package / name)
            copied.append(name)
    return copied


def environment(folder: Path = FOLDER) -> dict[str, str]:
    """Variables with which a stage finds the checkout, the packages and the compiled kernels."""
    paths = [str(ROOT), str(folder / PACKAGES), os.environ.get("PYTHONPATH", "")]
    found = {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONUNBUFFERED": "1"}
    if (folder / TRITON_CACHE).is_dir():
        found["TRITON_CACHE_DIR"] = str(folder / TRITON_CACHE)
    return found
