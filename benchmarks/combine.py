"""From per-task gradients to the direction: gram + weights + combine beside a copy and the peers.

    python benchmarks/combine.py [--cases resnet18,lenet] [--tasks 2,3,4,8] [--dtype float32]

One table a case and T. "x copy" is the time over that of copying the same bytes with torch, the
(2T + 1) N elements that reading all gradients twice and writing the direction moves; "x ours" is
the time over ours. "reads and a write" is the same traffic in its own proportions, T N elements
summed twice and N filled, by torch: what no method that needs all gradients for its weights can
beat by much. Every provider's direction is checked against float64 before it is timed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from cases import CASES, gradients
from providers import PROVIDERS
from timing import interleaved, quartiles
from torch import Tensor

from mtlkernels import build_info, reference


def copy_of_same_bytes(numel: int, num_tasks: int, dtype: torch.dtype) -> Callable[[], object]:
    """dst.copy_(src) that reads and writes (2T + 1) N elements in all."""
    count = (2 * num_tasks + 1) * numel // 2
    source, target = torch.ones(count, dtype=dtype), torch.zeros(count, dtype=dtype)
    return lambda: target.copy_(source)


def reads_and_a_write(numel: int, num_tasks: int, dtype: torch.dtype) -> Callable[[], object]:
    """Two sums over T N elements and a fill of N."""
    source, target = torch.ones(num_tasks * numel, dtype=dtype), torch.zeros(numel, dtype=dtype)
    return lambda: (source.sum(), source.sum(), target.fill_(1))


def oracle(grads: list[Tensor], num_tasks: int) -> list[Tensor]:
    """PCGrad's direction in float64. Its visiting order matters little: the gradients of a case are
    nearly orthogonal, so orders differ by far less than the tolerance of the check."""
    wide = [grad.to(torch.float64) for grad in grads]
    K = reference.gram(wide, num_tasks)
    order = reference.visiting_order(torch.tensor(0), torch.tensor(0), num_tasks)
    weights, _ = reference.pcgrad(K, order, False)
    count = len(grads) // num_tasks
    rows = [wide[t * count : (t + 1) * count] for t in range(num_tasks)]
    return [
        sum(w * g for w, g in zip(weights, column, strict=True))
        for column in zip(*rows, strict=True)
    ]


def relative_error(have: list[Tensor], want: list[Tensor]) -> float:
    difference = sum(float((h - w).square().sum()) for h, w in zip(have, want, strict=True))
    return (difference / sum(float(w.square().sum()) for w in want)) ** 0.5


def measure(case: str, num_tasks: int, dtype: torch.dtype, budget: float) -> None:
    shapes = CASES[case]()
    numel = sum(torch.Size(shape).numel() for shape in shapes)
    grads = gradients(shapes, num_tasks, dtype)
    want = oracle(grads, num_tasks)
    tolerance = 2e-3 if dtype in (torch.float32, torch.float64) else 3e-2
    runs: dict[str, Callable[[], object]] = {
        "copy": copy_of_same_bytes(numel, num_tasks, dtype),
        "reads and a write": reads_and_a_write(numel, num_tasks, dtype),
    }
    told: dict[str, str] = {}
    for name, set_up in PROVIDERS.items():
        try:
            run = set_up(grads, num_tasks)
            error = relative_error(run(), want)
        except Exception as problem:  # a peer that is missing or fails says so in its row
            told[name] = f"{type(problem).__name__}: {problem}".splitlines()[0]
            continue
        if error <= tolerance:
            runs[name] = run
        else:
            told[name] = f"wrong by {error:.1e}: not timed"
    seconds = interleaved(runs, budget)

    copy, mine = quartiles(seconds["copy"])[1], quartiles(seconds["ours"])[1]
    moved = (2 * num_tasks + 1) * numel * grads[0].element_size()
    rounds = len(seconds["copy"])
    size = f"N = {numel:,}, {moved / 1e6:.1f} MB moved"
    print(f"\n{case}, T = {num_tasks}, {str(dtype)[6:]}: {size}, {rounds} rounds")
    print(f"{'':26}{'median ms':>10}{'quartiles':>20}{'GB/s':>8}{'x copy':>8}{'x ours':>8}")
    for name, values in seconds.items():
        low, middle, high = quartiles(values)
        spread = f"{low * 1e3:.3f} - {high * 1e3:.3f}"
        print(
            f"{name:26}{middle * 1e3:>10.3f}{spread:>20}{moved / middle / 1e9:>8.1f}"
            f"{middle / copy:>8.2f}{middle / mine:>8.2f}"
        )
    for name, reason in told.items():
        print(f"{name:26}{reason}")


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--cases", default="resnet18,lenet", help=f"of {', '.join(CASES)}")
    parser.add_argument("--tasks", default="2,3,4,8", help="numbers of tasks")
    parser.add_argument("--dtype", default="float32", help="float32, float64, bfloat16, float16")
    parser.add_argument("--threads", type=int, default=2, help="torch's threads")
    parser.add_argument("--seconds", type=float, default=8.0, help="budget of a table")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(", ".join(f"{key} {value}" for key, value in build_info().items()))
    print(f"{options.threads} threads")
    for case in options.cases.split(","):
        for tasks in options.tasks.split(","):
            measure(case, int(tasks), getattr(torch, options.dtype), options.seconds)


if __name__ == "__main__":
    main()
