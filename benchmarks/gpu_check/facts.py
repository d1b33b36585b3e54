"""Stage "facts": the device, the driver, the versions, and who serves what."""

from __future__ import annotations

import platform
import subprocess
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version

import torch

from benchmarks.gpu_check.records import Records, device
from mtlkernels import backends, build_info


def installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def driver() -> str:
    """The driver's version, or why it is not known."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"unknown ({error})"
    return (told.stdout.strip().splitlines() or ["unknown"])[0]


def main() -> None:
    records = Records.of_this_stage()
    records.add(
        "machine",
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        python=platform.python_version(),
        system=platform.platform(),
        packages={name: installed(name) for name in ("torch", "triton", "torchjd", "numpy")},
        driver=driver(),
    )
    if device() == "cuda":
        found = torch.cuda.get_device_properties(0)
        records.add(
            "device",
            name=found.name,
            capability=f"{found.major}.{found.minor}",
            multiprocessors=found.multi_processor_count,
            memory=found.total_memory,
        )
    records.add("build", **build_info())
    serves = {op: told["serves"] for op, told in backends()[device()].items()}
    others = backends()[device()]["gram"]["others"]
    records.add("backends", serves=serves, why_not_others_for_gram=others)


if __name__ == "__main__":
    main()
