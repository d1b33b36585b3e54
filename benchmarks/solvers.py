"""Microseconds of a method's weights from the Gram matrix, beside torchjd's.

    python -m benchmarks.solvers [--tasks 2,3,8,20,40]

Every registered Gram method, on one core: the whole call (module, op, solver) on conflicting
gradients. torchjd's weightings work on the same Gram matrix; a method that it does not have, or for
which it needs the gradients, has no number.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torchjd import aggregation

import mtlkernels
from benchmarks.suite.timing import interleaved, quartiles
from mtlkernels.methods import METHODS

Weigh = Callable[..., Tensor]

# How to set up what does not come without arguments, for T tasks.
SET_UP: dict[str, Callable[[int], mtlkernels.GramMethod]] = {
    "FixedWeights": lambda T: mtlkernels.FixedWeights([1.0] * T),
    "CRMOGM": lambda T: mtlkernels.CRMOGM(mtlkernels.MGDA()),
    "Normalized": lambda T: mtlkernels.Normalized(mtlkernels.MGDA()),
    "Preferred": lambda T: mtlkernels.Preferred(mtlkernels.MGDA(), [1.0] * T),
    "ClippedTasks": lambda T: mtlkernels.ClippedTasks(mtlkernels.MGDA(), 1.0),
    "LogLosses": lambda T: mtlkernels.LogLosses(mtlkernels.MGDA()),
}

# torchjd's weighting of the Gram matrix, where it has one.
TORCHJD: dict[str, Callable[[], Weigh]] = {
    "Sum": aggregation.SumWeighting,
    "Mean": aggregation.MeanWeighting,
    "PCGrad": aggregation.PCGradWeighting,
    "GradVac": aggregation.GradVacWeighting,
    "CAGrad": lambda: aggregation.CAGradWeighting(c=0.4),
    "MGDA": aggregation.MGDAWeighting,
    "DualProj": aggregation.DualProjWeighting,
    "UPGrad": aggregation.UPGradWeighting,
    "FairGrad": lambda: aggregation.FairGradWeighting(alpha=2.0),
    "IMTLG": aggregation.IMTLGWeighting,
    "AlignedMTL": aggregation.AlignedMTLWeighting,
    "RandomWeights": aggregation.RandomWeighting,
    "CRMOGM": lambda: aggregation.CRMOGMWeighting(aggregation.MGDAWeighting()),
    "SDMGrad": aggregation.SDMGradWeighting,
    "MoDo": aggregation.MoDoWeighting,
}


def gram(num_tasks: int) -> Tensor:
    """(T, T) float64 of gradients of which many pairs conflict."""
    generator = torch.Generator().manual_seed(0)
    G = torch.randn(num_tasks, 4 * num_tasks, dtype=torch.float64, generator=generator)
    G = G - 0.9 * G.mean(dim=0)
    return G @ G.T


def microseconds(set_up: Callable[[], Weigh], arguments: tuple[Tensor, ...], budget: float) -> str:
    """The median, or why there is none."""
    try:
        weigh = set_up()
        weigh(*arguments)
    except Exception as problem:  # what does not take this number of tasks says so in its place
        return type(problem).__name__
    return f"{quartiles(interleaved({'': lambda: weigh(*arguments)}, budget)[''])[1] * 1e6:.1f}"


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
        f"\nmicroseconds, ours / torchjd's\n{'':14}" + "".join(f"{f'T = {T}':>20}" for T in sizes)
    )
    for method in METHODS.values():
        name, cells = method.__name__, []
        if method.family != "Gram":
            continue
        for T in sizes:
            K, losses = gram(T), torch.linspace(0.5, 2, T, dtype=torch.float64)
            make = partial(SET_UP[name], T) if name in SET_UP else method
            mine = microseconds(make, (K, losses), options.seconds)
            theirs = TORCHJD.get(name)
            other = microseconds(theirs, (K,), options.seconds) if theirs else "-"
            cells.append(f"{f'{mine} / {other}':>20}")
        print(f"{name:14}{''.join(cells)}", flush=True)


if __name__ == "__main__":
    main()
