"""Scenarios for several processes: one start of a process group runs those of several files.

A scenario is a function without arguments whose name begins with `check_`, in a module named
`dist_...`; it runs on every rank and fails where it raises. `WORLDS` of the module, or of the
function, says with how many processes. After one that fails none runs, as ranks may stand in
different collectives then.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import mtlkernels
from mtlkernels.engine import local as backprop

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path.append(str(ROOT))
# `make dist-check` sets it: a GPU for each rank.
NCCL = os.environ.get("MTLKERNELS_DIST") == "nccl"
DEVICE = "cuda" if NCCL else "cpu"
TIMEOUT = 60  # seconds for a collective; 4 processes on 2 cores are slow

Outcome = dict[str, list[str]]


def scenarios(modules: Sequence[str], world: int) -> dict[str, Callable[[], None]]:
    """The checks that are meant for a number of processes, in their order: "module.check"."""
    return {
        f"{module}.{name.removeprefix('check_')}": check
        for module in modules
        for found in [importlib.import_module(module)]
        for name, check in vars(found).items()
        if name.startswith("check_") and world in getattr(check, "worlds", found.WORLDS)
    }


def only(*worlds: int) -> Callable[[Any], Any]:
    """Marks a check as one for these numbers of processes."""

    def mark(check: Any) -> Any:
        check.worlds = worlds
        return check

    return mark


def run(modules: Sequence[str], world: int, folder: Path | None = None) -> Outcome:
    """What each scenario raised on each rank, "" where it passed."""
    with tempfile.TemporaryDirectory() as own:
        shared = Path(own)
        package = Path(mtlkernels.__file__).parent.parent
        paths = [str(HERE), str(HERE.parent / "helpers"), str(package)]
        env = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")]),
            "OMP_NUM_THREADS": "1",
            "DIST_FOLDER": str(folder or shared),
        }
        names = ",".join(modules)
        command = [sys.executable, str(HERE / "dist_harness.py"), names, str(world), own]
        ranks = []
        for rank in range(world):
            with (shared / f"{rank}.log").open("w") as log:
                ranks.append(
                    subprocess.Popen(
                        [*command, str(rank)], env=env, stdout=log, stderr=subprocess.STDOUT
                    )
                )
        deadline = time.monotonic() + 240
        try:
            for process in ranks:
                process.wait(max(1.0, deadline - time.monotonic()))
        finally:
            for process in ranks:
                process.kill()
                process.wait()
        outcome: Outcome = {name: [] for name in scenarios(modules, world)}
        for rank in range(world):
            answers = shared / f"{rank}.json"
            told = json.loads(answers.read_text()) if answers.exists() else {}
            for name, results in outcome.items():
                missing = "did not get there: " + (shared / f"{rank}.log").read_text()[-3000:]
                results.append(told.get(name, missing))
        return outcome


def folder() -> Path:
    """Where the scenarios of several starts may leave files for each other."""
    return Path(os.environ["DIST_FOLDER"])


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """For a reference in one process: each rank computes it all by itself."""
    kept = backprop.refuse_several_ranks
    backprop.refuse_several_ranks = lambda: None
    try:
        yield
    finally:
        backprop.refuse_several_ranks = kept


def main(modules: Sequence[str], world: int, shared: Path, rank: int) -> None:
    torch.set_num_threads(1)
    if NCCL:
        torch.cuda.set_device(rank)
        torch.set_default_device("cuda")
    checks = scenarios(modules, world)
    warnings.simplefilter("error")
    dist.init_process_group(
        "nccl" if NCCL else "gloo",
        init_method=f"file://{shared}/store",
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=TIMEOUT),
    )
    told = {}
    for name, check in checks.items():
        start = time.monotonic()
        try:
            check()
            told[name] = ""
        except Exception:
            told[name] = traceback.format_exc()
        if os.environ.get("DIST_VERBOSE"):
            print(name, f"{time.monotonic() - start:.2f} s", told[name], flush=True)
        (shared / f"{rank}.json").write_text(json.dumps(told))
        if told[name]:
            break
    if all(not text for text in told.values()):
        dist.barrier()
        gc.collect()  # cycles hold the group, whose threads must end before Python does
        dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1].split(","), int(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
    os._exit(0)  # threads of a broken group would keep the process
