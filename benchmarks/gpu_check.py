"""Everything that needs a GPU, in one command: build, tests, benchmarks; installs nothing.

    python -m benchmarks.gpu_check [--seconds 480]

Uses the Python that runs it, with its torch, nvcc, pybind11 and ninja, and needs no network.
Results go to benchmarks/results/. Where there is no GPU it says so and is done.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from datetime import datetime, timezone
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BACKENDS = ("native", "triton")


def run(title: str, command: list[str], seconds: float, **environment: str) -> bool:
    """Runs one step with its output shown; whether it went well."""
    print(f"\n== {title}", flush=True)
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    start = time.monotonic()
    try:
        code = subprocess.run(
            [sys.executable, *command],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": path, **environment},
            timeout=max(seconds, 1),
            check=False,
        ).returncode
        ended = "passed" if code == 0 else f"failed with status {code}"
    except subprocess.TimeoutExpired:
        ended = "ran out of time"
    print(f"== {title}: {ended}, {time.monotonic() - start:.0f} s", flush=True)
    return ended == "passed"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=480, help="budget of everything")
    options = parser.parse_args()
    if find_spec("torch") is None:
        print(f"no GPU: {sys.executable} has no torch, so nothing was built, tested or measured")
        return 0
    import torch

    if not torch.cuda.is_available():
        print("no GPU: nothing was built, tested or measured")
        return 0
    end = time.monotonic() + options.seconds
    major, minor = torch.cuda.get_device_capability()
    stamp = datetime.now(timezone.utc).strftime("%Y%m%d-%H%M%S")
    built = run(
        "build",
        ["setup.py", "build_ext", "--inplace"],
        options.seconds / 2,
        FORCE_CUDA="1",
        TORCH_CUDA_ARCH_LIST=f"{major}.{minor}",
    )
    good = built
    for number, backend in enumerate(BACKENDS):
        left = (end - time.monotonic()) / (len(BACKENDS) - number)
        good &= run(
            f"{backend}: tests",
            ["-m", "pytest", "-q", "-m", "gpu", "tests/test_gpu.py", "tests/test_gpu_step.py"],
            left * 0.6,
            MTLKERNELS_BACKEND=backend,
        )
        left = (end - time.monotonic()) / (len(BACKENDS) - number)
        good &= run(
            f"{backend}: benchmarks",
            [
                *("benchmarks/gpu.py", "--out", f"benchmarks/results/{stamp}-{backend}"),
                *("--seconds", str(int(left * 0.7))),
            ],
            left,
            MTLKERNELS_BACKEND=backend,
        )
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
