"""Answers of every Gram method's solver against 60 digits, on gradients that depend on each other.

    python -m benchmarks.exactness [--problems 200] [--kinds near,sums] [--dtypes float32]
                                   [--methods IMTLG] [--reference]

Of each kind and dtype: unflagged answers more than 1e-4 off, then flagged ones, then the share of
flagged ones among those whose exact answer moves by less than 1e-6 where each stored number moves
by half a distance of its dtype. An answer is right if it is that of the stored gradients, or where
the kind has an exact relation that storing rounded (a + b, 1.7 g), that of the exact relation.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "helpers"))

import exact_answers as exact
from dependent_gradients import KINDS, Problem

from mtlkernels import ops, reference

OFF, STABLE = 1e-4, 1e-6
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
DTYPES["float64"] = torch.float64
Solve = Callable[[object, Tensor], tuple[Tensor, Tensor]]


class Method(NamedTuple):
    """solve(ops or reference, K) and the exact answer, which may depend on T."""

    solve: Solve
    exact: Callable[[int], exact.Exact]


def _order(T: int) -> Tensor:
    return torch.tensor([[j for j in range(T) if j != i] for i in range(T)]).reshape(T, T - 1)


def _of(name: str, *numbers: object) -> Solve:
    return lambda where, K: getattr(where, name)(K, *numbers)


NONE = torch.empty(0, dtype=torch.float64)
METHODS: dict[str, Method] = {
    "Aligned-min": Method(_of("aligned", None, 0, False), lambda T: exact.aligned("min")),
    "Aligned-median": Method(_of("aligned", None, 1, False), lambda T: exact.aligned("median")),
    "Aligned-rmse": Method(_of("aligned", None, 2, False), lambda T: exact.aligned("rmse")),
    "IMTLG": Method(_of("equiangular", 1), lambda T: exact.equiangular(True)),
    "ConFIG": Method(_of("equiangular", 0), lambda T: exact.equiangular(False)),
    "MGDA": Method(_of("mgda"), lambda T: exact.mgda),
    "CAGrad": Method(_of("cagrad", 0.4, 0, False), lambda T: exact.cagrad(0.4)),
    "IMGrad": Method(_of("imgrad", 0.8, 1, 0), lambda T: exact.imgrad(0.8)),
    "DualProj": Method(_of("dualproj", NONE), lambda T: exact.dualproj),
    "UPGrad": Method(_of("upgrad", NONE), lambda T: exact.upgrad),
    "NashMTL": Method(_of("fairgrad", 1.0, None, float("inf")), lambda T: exact.fair(1.0)),
    "FairGrad": Method(_of("fairgrad", 2.0, None, float("inf")), lambda T: exact.fair(2.0)),
    "AvgNorm": Method(_of("avgnorm", 0, 1.0), lambda T: exact.avgnorm),
    "PCGrad": Method(
        lambda where, K: where.pcgrad(K, _order(len(K)), False),  # type: ignore[attr-defined]
        lambda T: exact.pcgrad(_order(T)),
    ),
}


class Tally(NamedTuple):
    """Counts of problems of a kind, a dtype and a method."""

    unknown: int = 0
    off: int = 0
    flagged: int = 0
    stable: int = 0
    stable_flagged: int = 0
    worst: float = 0.0


def judge(problem: Problem, method: Method, where: object, seed: int) -> tuple[float, bool, bool]:
    """The error of an answer, whether it is flagged, and whether the exact one is stable."""
    rows = problem.rows
    w, status = method.solve(where, ops.gram(list(rows), len(rows)))
    answer = [exact.mpf(x) for x in w.tolist()]
    solve = method.exact(len(rows))
    K, moved, cross = exact.rounded_pair(rows, torch.Generator().manual_seed(seed))
    right = solve(K, answer)
    found = exact.error(answer, right, K)
    if problem.relation is not None and found > OFF:
        base, combination = problem.relation
        ideal = exact.exact_gram(base, combination)
        found = min(found, exact.error(answer, solve(ideal, answer), ideal))
    change = exact.moves(right, K, solve(moved, answer), moved, cross)
    return found, bool(status.any()), change < STABLE


def tally(kind: str, dtype: torch.dtype, name: str, problems: int, where: object) -> Tally:
    unknown = off = flagged = stable = stable_flagged = 0
    worst = 0.0
    for seed in range(problems):
        try:
            error, flag, steady = judge(KINDS[kind](seed, dtype), METHODS[name], where, seed)
        except ArithmeticError:
            unknown += 1
            continue
        off += not flag and not error <= OFF
        worst = worst if flag else max(worst, error)
        flagged += flag
        stable += steady
        stable_flagged += steady and flag
    return Tally(unknown, off, flagged, stable, stable_flagged, worst)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--problems", type=int, default=200, help="of a kind and a dtype")
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--dtypes", default=",".join(DTYPES))
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--reference", action="store_true", help="judge the plain torch solvers")
    options = parser.parse_args()
    torch.set_num_threads(1)
    where = reference if options.reference else ops
    heads = ("method", "kind", "dtype", "problems", "unknown", "off", "worst", "flagged", "stable")
    print(("{:15}{:11}{:9}" + "{:>9}" * 7).format(*heads, "flagged"), flush=True)
    start = time.time()
    for name in options.methods.split(","):
        for kind in options.kinds.split(","):
            for dtype in options.dtypes.split(","):
                t = tally(kind, DTYPES[dtype], name, options.problems, where)
                numbers = f"{options.problems:9}{t.unknown:9}{t.off:9}{t.worst:9.0e}{t.flagged:9}"
                print(
                    f"{name:15}{kind:11}{dtype:9}{numbers}{t.stable:9}{t.stable_flagged:9}",
                    flush=True,
                )
    print(f"{time.time() - start:.0f} s")


if __name__ == "__main__":
    main()
