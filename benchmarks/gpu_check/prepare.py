"""python -m benchmarks.gpu_check.prepare [--python python3.12] [--torch torch==2.11.0] [--arch 9.0]

Fills the folder .gpu with what the check needs and a machine without a network cannot fetch: the
native libraries for that Python, stripped; the Triton kernels, compiled; and torchjd. Needs nvcc
and a network, and no GPU. The folder travels with the checkout; it is under 64 MB, or this fails.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu_check.prepared import FOLDER, LIBRARIES, PACKAGES, ROOT, TRITON_CACHE

WORK = ROOT / "build" / "gpu"  # the Python that builds, and what it builds on the way
MOST_BYTES = 64 << 20
TORCHJD = "torchjd"


def call(*command: str | Path, **environment: str) -> None:
    subprocess.run(
        [str(word) for word in command], cwd=ROOT, env={**os.environ, **environment}, check=True
    )


def python_with(torch: str, python: str, extra: Sequence[str]) -> Path:
    """An environment with that torch; made once."""
    home = WORK / f"{Path(python).name}-{torch.replace('=', '-')}"
    found = home / "bin" / "python"
    if not (home / "ready").exists():
        call(python, "-m", "venv", home)
        call(found, "-m", "pip", "install", "-q", torch, *extra)
        (home / "ready").touch()
    return found


def libraries(python: Path, arch: str) -> None:
    """Both libraries for one architecture, without what only a debugger reads."""
    built = WORK / "lib"
    call(
        python, "setup.py", "build_ext", "--build-lib", built, "--build-temp", WORK / "temp",
        FORCE_CUDA="1", TORCH_CUDA_ARCH_LIST=arch, NVCC_APPEND_FLAGS="-split-compile=0",
    )  # fmt: skip
    shutil.rmtree(FOLDER / LIBRARIES, ignore_errors=True)
    (FOLDER / LIBRARIES).mkdir(parents=True)
    for path in sorted((built / "mtlkernels").glob("_C*.so")):
        call("strip", "--strip-unneeded", "-o", FOLDER / LIBRARIES / path.name, path)


def triton_kernels(python: Path, arch: str) -> None:
    """Triton's kernels for the same architecture, where its launches look for them."""
    shutil.rmtree(FOLDER / TRITON_CACHE, ignore_errors=True)
    call(
        python, "-m", "benchmarks.gpu_check.warm_triton", arch.replace(".", ""),
        TRITON_CACHE_DIR=str(FOLDER / TRITON_CACHE), PYTHONPATH=str(ROOT), MTLKERNELS_BACKEND="",
    )  # fmt: skip
    for path in (FOLDER / TRITON_CACHE).rglob("*"):  # only the binary is loaded
        if path.suffix in (".ttir", ".ttgir", ".llir", ".ptx", ".source"):
            path.unlink()


def packages(python: Path) -> None:
    """torchjd, which is pure Python; what it needs besides torch is there already or left out."""
    shutil.rmtree(FOLDER / PACKAGES, ignore_errors=True)
    call(
        python, "-m", "pip", "install", "-q", "--no-deps", "--target", FOLDER / PACKAGES, TORCHJD
    )  # fmt: skip


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--python", default="python3.12", help="of the machine with the GPU")
    parser.add_argument("--torch", default="torch==2.11.0", help="its torch, for pip")
    parser.add_argument("--arch", default="9.0", help="its GPU's compute capability")
    options = parser.parse_args()
    build = ["setuptools>=77", "wheel", "pybind11", "ninja", "numpy"]
    python = python_with(options.torch, options.python, build)
    libraries(python, options.arch)
    triton_kernels(python, options.arch)
    packages(python)
    size = size_of(FOLDER)
    print(f"{FOLDER}: {size / 1e6:.1f} MB for {options.python}, {options.torch}, {options.arch}")
    if size > MOST_BYTES:
        raise SystemExit(f"{FOLDER} is over {MOST_BYTES >> 20} MB: it does not travel")


if __name__ == "__main__":
    main()
