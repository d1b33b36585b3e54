"""python -m benchmarks.gpu_check [--out DIR] [--seconds 420] [--stages ops,steps] [--stand-in]

Runs the stages one after another, each with its limit, and writes DIR/summary.md. Uses the Python
that runs it, installs nothing, and needs no network. Where there is no GPU it says so and is done;
with --stand-in it runs every stage on the CPU in its shortest form.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Mapping
from datetime import datetime, timezone
from importlib.util import find_spec
from pathlib import Path

from benchmarks.gpu_check import prepared, processes, stages
from benchmarks.gpu_check.records import DEVICE, OUT, SHORT, STAGE, Records, read
from benchmarks.gpu_check.stages import Stage
from benchmarks.gpu_check.summary import summary

BUILD_SECONDS = 170
# Exits with 0 where a GPU is seen, 1 where none is, 2 where the native kernels do not serve it.
LOOK = """
import sys, torch
if not torch.cuda.is_available(): sys.exit(1)
import mtlkernels
told = mtlkernels.backends()["cuda"]["gram"]
print("native library:", told)
sys.exit(0 if told["serves"] == "native" else 2)
"""
GPU_SEEN = "import sys, torch; sys.exit(0 if torch.cuda.is_available() else 1)"
BUILD = """
import os, runpy, sys, torch
os.environ["FORCE_CUDA"] = "1"
os.environ["TORCH_CUDA_ARCH_LIST"] = "%d.%d" % torch.cuda.get_device_capability()
os.environ["NVCC_APPEND_FLAGS"] = "-split-compile=0"
sys.argv = ["setup.py", "build_ext", "--inplace"]
runpy.run_path("setup.py", run_name="__main__")
"""


class Check:
    """One run of the check: its folder, its deadline, and how its stages went."""

    def __init__(self, out: Path, seconds: float, environment: Mapping[str, str]) -> None:
        self.out = out
        self.end = time.monotonic() + seconds
        self.environment = {**os.environ, **prepared.environment(), **environment}
        self.environment[OUT] = str(out.resolve())
        self.log = out / "log.txt"
        out.mkdir(parents=True, exist_ok=True)

    def run(self, stage: Stage) -> processes.Ended:
        """One stage; how it ended is in the results too."""
        records = Records(self.out, stage.name)
        records.add("begin", limit=stage.seconds)
        with self.log.open("a") as file:
            file.write(f"\n== {stage.name}: {' '.join(stage.command)}\n")
        left = self.end - time.monotonic()
        if left < 1:
            ended = processes.Ended("left out: no time is left", 0.0)
        else:
            variables = {**self.environment, **stage.environment, STAGE: stage.name}
            ended = processes.run(
                stage.command, min(stage.seconds, left), self.log, prepared.ROOT, variables
            )
        self._end(records, ended)
        return ended

    def skip(self, stage: Stage, why: str) -> None:
        self._end(Records(self.out, stage.name), processes.Ended(f"skipped: {why}", 0.0))

    def _end(self, records: Records, ended: processes.Ended) -> None:
        records.add("end", how=ended.how, seconds=round(ended.seconds, 1))
        print(f"{records.stage:14} {ended.seconds:6.1f} s  {ended.how}", flush=True)

    def has_native(self) -> bool:
        """Whether the CUDA library serves this GPU; built here where the prepared one does not."""
        look = Stage("look", 30, [sys.executable, "-c", LOOK])
        if self.run(look).passed:
            return True
        self.run(Stage("build", BUILD_SECONDS, [sys.executable, "-c", BUILD]))
        return self.run(look).passed

    def finish(self) -> None:
        text = summary(read(self.out))
        (self.out / "summary.md").write_text(text)
        print(text)


def sees_gpu() -> bool:
    """Asked in a process of its own: this one stays free of torch and of a CUDA context."""
    command = [sys.executable, "-c", GPU_SEEN]
    return processes.run(
        command, 60, Path(os.devnull), prepared.ROOT, {**os.environ, **prepared.environment()}
    ).passed


def run_all(check: Check, chosen: list[Stage], native: bool) -> bool:
    """All stages; whether every one passed. Whatever ends this, what is known is written down."""
    good = True
    try:
        for stage in chosen:
            if stage.native and not native:
                check.skip(stage, "the native kernels do not serve this GPU: see log.txt")
                good = False
            else:
                good &= check.run(stage).passed
    finally:
        check.finish()
    return good


def stopped(number: int, _: object) -> None:
    raise SystemExit(128 + number)  # through the `finally` of the running stage and of run_all


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, help="folder of the results")
    parser.add_argument("--seconds", type=float, default=420, help="limit of everything")
    parser.add_argument("--stages", default="", help="names of stages; all without it")
    parser.add_argument("--stand-in", action="store_true", help="on the CPU, as short as can be")
    options = parser.parse_args()
    if find_spec("torch") is None:
        print(f"no GPU: {sys.executable} has no torch, so nothing was built, tested or measured")
        return 0
    if not options.stand_in:
        prepared.put_in_place()
        if not sees_gpu():
            print("no GPU: nothing was built, tested or measured")
            return 0
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stopped)
    stamp = datetime.now(timezone.utc).strftime("%Y%m%d-%H%M%S")
    out = options.out or prepared.ROOT / "benchmarks" / "results" / f"gpu-{stamp}"
    variables = {DEVICE: "cpu", SHORT: "1"} if options.stand_in else {DEVICE: "cuda", SHORT: "0"}
    check = Check(out, options.seconds, variables)
    found = stages.on_stand_in() if options.stand_in else stages.on_gpu()
    names = set(filter(None, options.stages.split(",")))
    unknown = names - {stage.name for stage in found}
    if unknown:
        parser.error(f"--stages names {', '.join(sorted(unknown))}, which is no stage")
    chosen = [stage for stage in found if not names or stage.name in names]
    native = not any(stage.native for stage in chosen) or check.has_native()
    return 0 if run_all(check, chosen, native) else 1


if __name__ == "__main__":
    sys.exit(main())
