"""Time and peak memory of a step, from the batch to .grad, for each choice beside a plain step.

    python -m benchmarks.step [--models demo,resnet18,vit] [--tasks 3,8] [--only rows,features]

One table a model and T. "x plain" is over one backward of the sum of the losses. "MB" is the most
that torch allocated during a step beyond parameters and batch, from a pass of its own that is not
timed: activations, gradients and .grad, which is None before each step. "from rows" is how far the
gradient of the shared parameters is from the one with weights from all rows, relative to it:
rounding for exact ways, and what `measure=` and `features=` change of the direction. All weigh by
UPGrad, torchjd too; its backward and autogram weigh the heads as well, ours and mtl_backward do
not. The steps of `every=10` are one like "rows" and nine that reuse its weights; its row is their
mean. Compiling takes minutes on two cores: compile_step runs where --only names it.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.choices import CHOICES, PLAIN, REUSING, ROWS
from benchmarks.models import MODELS, Workload
from benchmarks.suite.memory import peak_bytes
from benchmarks.suite.timing import interleaved, quartiles
from mtlkernels import build_info

EVERY = 10


@dataclass(frozen=True)
class Measured:
    """Seconds (quartiles), bytes at the peak, and the distance from the rows' direction."""

    seconds: tuple[float, float, float]
    peak: float
    distance: float | None


def fresh(work: Workload, run: Callable[[], str], device: torch.device) -> Callable[[], str]:
    """The step from .grad = None to the device being done."""

    def step() -> str:
        work.model.zero_grad(set_to_none=True)
        told = run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return told

    return step


def direction(work: Workload) -> Tensor:
    return torch.cat([param.grad.flatten() for param in work.shared if param.grad is not None])


def measure(
    work: Workload, names: list[str], device: torch.device, budget: float
) -> tuple[dict[str, Measured], dict[str, str], int]:
    """What each choice costs; what choices said of themselves; the number of rounds."""
    runs: dict[str, Callable[[], str]] = {}
    told: dict[str, str] = {}
    peaks: dict[str, int] = {}
    directions: dict[str, Tensor] = {}
    for name in names:
        own = copy.deepcopy(work)  # a choice may hook into its model
        try:
            run = fresh(own, CHOICES[name](own), device)
            run()
            own.model.zero_grad(set_to_none=True)  # memory that the pass would see freed
            peaks[name] = peak_bytes(run, device)
            said = run()
        except Exception as problem:  # what is missing or fails says so in its row
            told[name] = f"{type(problem).__name__}: {problem}".splitlines()[0][:120]
            continue
        runs[name], directions[name] = run, direction(own)
        if said:
            told[name] = said
    seconds = interleaved(runs, budget)
    want = directions.get(ROWS)
    found = {}
    for name, have in directions.items():
        same = want is not None and name != PLAIN  # whose weights are all 1
        distance = float((have - want).norm() / want.norm()) if same else None
        found[name] = Measured(quartiles(seconds[name]), peaks[name], distance)
    return found, told, len(seconds[PLAIN])


def amortised(ask: Measured, reuse: Measured) -> Measured:
    """A step of every=10, on average."""
    low, middle, high = (
        (a + (EVERY - 1) * b) / EVERY for a, b in zip(ask.seconds, reuse.seconds, strict=True)
    )
    return Measured((low, middle, high), max(ask.peak, reuse.peak), None)


def print_table(
    model: str, tasks: int, names: list[str], device: torch.device, budget: float
) -> None:
    torch.manual_seed(0)
    work = MODELS[model](tasks).to(device)
    found, told, rounds = measure(work, names, device, budget)
    if ROWS in found and REUSING in found:
        found[f"every={EVERY}, on average"] = amortised(found[ROWS], found[REUSING])
    numel = sum(param.numel() for param in work.shared)
    print(f"\n{model}, T = {tasks}: {numel:,} shared parameters, {rounds} rounds")
    print(
        f"{'':26}{'median ms':>10}{'quartiles':>18}{'x plain':>9}{'MB':>9}{'x plain':>9}"
        f"{'from rows':>11}"
    )
    first = found[PLAIN]
    for name, row in found.items():
        low, middle, high = row.seconds
        distance = "" if row.distance is None else f"{row.distance:.1e}"
        print(
            f"{name:26}{middle * 1e3:>10.2f}{f'{low * 1e3:.2f} - {high * 1e3:.2f}':>18}"
            f"{middle / first.seconds[1]:>9.2f}{row.peak / 1e6:>9.1f}{row.peak / first.peak:>9.2f}"
            f"{distance:>11}"
        )
    for name, said in told.items():
        print(f"  {name}: {said}")


def chosen(only: str) -> list[str]:
    """The choices whose names hold one of some words; the plain step always."""
    words = [word for word in only.split(",") if word]
    if not words:
        return [name for name in CHOICES if name != "compile_step"]
    return [name for name in CHOICES if name == PLAIN or any(word in name for word in words)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--models", default="demo,resnet18,vit", help=f"of {', '.join(MODELS)}")
    parser.add_argument("--tasks", default="3,8", help="numbers of tasks")
    parser.add_argument("--only", default="", help="parts of the names of the rows to print")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=2, help="torch's threads")
    parser.add_argument("--seconds", type=float, default=10.0, help="budget of a table's rounds")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    print(", ".join(f"{key} {value}" for key, value in build_info().items()))
    print(f"{options.threads} threads, {device}, float32, UPGrad")
    for model in options.models.split(","):
        print(f"{model}: {MODELS[model].__doc__}")
    for model in options.models.split(","):
        for tasks in options.tasks.split(","):
            print_table(model, int(tasks), chosen(options.only), device, options.seconds)


if __name__ == "__main__":
    main()
