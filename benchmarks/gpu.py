"""gram, combine and the whole step on a CUDA device, beside the roofline and the alternatives.

    python -m benchmarks.gpu --out benchmarks/results/NAME [--seconds 180]

Writes NAME.json and NAME.md. MTLKERNELS_BACKEND names the backend that is measured. "share" is the
time of copying the same bytes with torch on this device over the time taken.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.arithmetic.roofline import SHOWN, moved
from benchmarks.suite.cases import CASES, gradients
from benchmarks.suite.cuda import cuda_seconds
from benchmarks.suite.providers import PROVIDERS, SLOW_TO_SET_UP
from mtlkernels import backends, build_info, ops


def environment() -> dict[str, Any]:
    """What the numbers depend on."""
    driver = subprocess.run(
        ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "gpu": torch.cuda.get_device_name(),
        "driver": driver.stdout.strip().splitlines()[0] if driver.stdout else "unknown",
        "python": platform.python_version(),
        "serves": {op: told["serves"] for op, told in backends()["cuda"].items()},
        **build_info(),
    }


def contestants(grads: list[Tensor], T: int) -> dict[str, tuple[Callable[[], object], int]]:
    """name -> (run, bytes it has to move)."""
    count = len(grads) // T
    size = grads[0].element_size()
    reads, both = moved(sum(g.numel() for g in grads[:count]), T, size)
    weights = torch.ones(T, dtype=torch.float64, device="cuda")
    out = ops.combine(grads, weights)
    seed, draw = torch.zeros(2, dtype=torch.int64, device="cuda")
    leak = torch.zeros(T, dtype=torch.float64, device="cuda")
    source = torch.ones((reads + both) // 2 // size, dtype=grads[0].dtype, device="cuda")
    target = torch.empty_like(source)
    return {
        "copy of the step's bytes": (lambda: target.copy_(source), reads + both),
        "gram": (lambda: ops.gram(grads, T), reads),
        "combine": (lambda: ops.combine_out(grads, weights, out), both),
        "graddrop": (lambda: ops.graddrop(grads, T, seed, draw, leak), both),
    }


def measure(case: str, T: int, dtype: torch.dtype, budget: float) -> list[dict[str, Any]]:
    """One row a contestant; a provider that fails says why."""
    grads = [grad.cuda() for grad in gradients(CASES[case](), T, dtype)]
    runs = contestants(grads, T)
    step = runs["copy of the step's bytes"][1]
    found: list[dict[str, Any]] = []
    bandwidth = 0.0
    peers = {name: made for name, made in PROVIDERS.items() if name not in SLOW_TO_SET_UP}
    for name, set_up in [*runs.items(), *peers.items()]:
        row: dict[str, Any] = {"case": case, "T": T, "dtype": str(dtype)[6:], "run": name}
        try:
            if isinstance(set_up, tuple):
                run, row["bytes"] = set_up
            else:
                run, row["bytes"] = set_up(T, "pcgrad")(grads), step
            row["seconds"], row["how"] = cuda_seconds(run, budget)
        except Exception as problem:  # a peer that is missing or fails says so in its row
            row["failed"] = f"{type(problem).__name__}: {problem}".splitlines()[0]
        else:
            bandwidth = bandwidth or row["bytes"] / row["seconds"]
            row["share"] = row["bytes"] / row["seconds"] / bandwidth
        found.append(row)
    return found


def table(facts: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """The rows for people."""
    lines = [", ".join(f"{k} {v}" for k, v in facts.items() if k != "serves"), ""]
    lines += ["| case | T | dtype | run | us | GB/s | share of copy | timed by |", "|" + "---|" * 8]
    for r in rows:
        head = f"| {r['case']} | {r['T']} | {r['dtype']} | {r['run']} | "
        if "failed" in r:
            lines.append(f"{head}{r['failed']} | | | |")
            continue
        rate = r["bytes"] / r["seconds"] / 1e9
        lines.append(
            f"{head}{r['seconds'] * 1e6:.1f} | {rate:.0f} | {r['share']:.2f} | {r['how']} |"
        )
    return "\n".join(lines) + "\n"


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", required=True, help="path of the results without a suffix")
    parser.add_argument("--seconds", type=float, default=180, help="budget of all tables")
    parser.add_argument("--cases", default=",".join(SHOWN))
    parser.add_argument("--tasks", default="2,3,8")
    parser.add_argument("--dtypes", default="float32,bfloat16")
    options = parser.parse_args()
    facts, rows = environment(), []
    end = time.monotonic() + options.seconds
    for case in options.cases.split(","):
        for tasks in map(int, options.tasks.split(",")):
            for dtype in options.dtypes.split(","):
                if time.monotonic() > end:
                    print(f"out of time before {case}, T = {tasks}, {dtype}")
                    continue
                rows += measure(case, tasks, getattr(torch, dtype), budget=0.1)
                torch.cuda.empty_cache()
    out = Path(options.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".json").write_text(json.dumps({"environment": facts, "rows": rows}, indent=1))
    out.with_suffix(".md").write_text(table(facts, rows))
    print(table(facts, rows))


if __name__ == "__main__":
    main()
