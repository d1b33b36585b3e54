"""Microseconds of a method's weights from the Gram matrix, beside torchjd's.

    python benchmarks/solvers.py [--tasks 2,3,8,20,40]

One core, the whole call (module, op, solver) on conflicting gradients. torchjd's weightings work on
the same Gram matrix; a method it does not have, or that needs the gradients there, has no number.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from timing import interleaved, quartiles
from torch import Tensor
from torchjd import aggregation

import mtlkernels

Weigh = Callable[[Tensor], Tensor]

# A method -> torchjd's weighting of the Gram matrix, where it has one.
METHODS: dict[str, tuple[Callable[[], mtlkernels.GramMethod], Callable[[], Weigh] | None]] = {
    "Sum": (mtlkernels.Sum, aggregation.SumWeighting),
    "AvgNorm": (mtlkernels.AvgNorm, None),
    "PCGrad": (mtlkernels.PCGrad, aggregation.PCGradWeighting),
    "GradVac": (mtlkernels.GradVac, aggregation.GradVacWeighting),
    "CAGrad": (mtlkernels.CAGrad, lambda: aggregation.CAGradWeighting(c=0.4)),
    "IMGrad": (mtlkernels.IMGrad, None),
    "MGDA": (mtlkernels.MGDA, aggregation.MGDAWeighting),
    "DualProj": (mtlkernels.DualProj, aggregation.DualProjWeighting),
    "UPGrad": (mtlkernels.UPGrad, aggregation.UPGradWeighting),
    "NashMTL": (mtlkernels.NashMTL, None),
    "FairGrad": (mtlkernels.FairGrad, None),
    "ConFIG": (mtlkernels.ConFIG, None),
    "IMTLG": (mtlkernels.IMTLG, aggregation.IMTLGWeighting),
    "AlignedMTL": (mtlkernels.AlignedMTL, aggregation.AlignedMTLWeighting),
}


def gram(num_tasks: int) -> Tensor:
    """(T, T) float64 of gradients of which many pairs conflict."""
    generator = torch.Generator().manual_seed(0)
    G = torch.randn(num_tasks, 4 * num_tasks, dtype=torch.float64, generator=generator)
    G = G - 0.9 * G.mean(dim=0)
    return G @ G.T


def microseconds(set_up: Callable[[], Weigh], K: Tensor, budget: float) -> str:
    """The median, or why there is none."""
    try:
        weigh = set_up()
        weigh(K)
    except Exception as problem:  # a peer that is missing a solver says so in its place
        return type(problem).__name__
    return f"{quartiles(interleaved({'': lambda: weigh(K)}, budget)[''])[1] * 1e6:.1f}"


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--tasks", default="2,3,8,20,40", help="numbers of tasks")
    parser.add_argument("--seconds", type=float, default=0.1, help="budget of a number")
    options = parser.parse_args()
    torch.set_num_threads(1)
    sizes = [int(size) for size in options.tasks.split(",")]
    print(", ".join(f"{key} {value}" for key, value in mtlkernels.build_info().items()))
    print(
        f"\nmicroseconds, ours / torchjd's\n{'':12}" + "".join(f"{f'T = {T}':>20}" for T in sizes)
    )
    for name, (ours, theirs) in METHODS.items():
        cells = []
        for T in sizes:
            K = gram(T)
            mine = microseconds(ours, K, options.seconds)
            other = microseconds(theirs, K, options.seconds) if theirs else "-"
            cells.append(f"{f'{mine} / {other}':>20}")
        print(f"{name:12}{''.join(cells)}", flush=True)


if __name__ == "__main__":
    main()
