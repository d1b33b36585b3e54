"""Stage "solver-rows": every solver at T = 3, 8, 16, 32, 64, and combine and gram at T = 64."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from benchmarks.gpu_check.records import Records, device, is_short
from benchmarks.gpu_check.timing import Deadline, record
from mtlkernels import ops

sys.path.insert(
    0, str(Path(__file__).parents[2] / "tests" / "helpers")
)  # the solvers' arguments are there
from hard_grams import hard_gram
from solver_cases import ARGUMENTS


def solver(name: str, T: int) -> Callable[[], object]:
    """A call of the op on a Gram matrix in which most pairs conflict."""
    K = hard_gram("conflicting", T, 3)
    moved = [x.to(device()) if isinstance(x, torch.Tensor) else x for x in ARGUMENTS[name](K)]
    op, gram = getattr(torch.ops.mtlkernels, name), K.to(device())
    return lambda: op(gram, *moved)


def wide(name: str, T: int) -> Callable[[], object]:
    grads = [torch.randn(1 << 20, device=device()) for _ in range(T)]
    weights = torch.ones(T, dtype=torch.float64, device=device())
    return {
        "gram": lambda: ops.gram(grads, T),
        "combine": lambda: ops.combine(grads, weights),
    }[name]


@torch.no_grad()
def main() -> None:
    deadline, records = Deadline(__doc__), Records.of_this_stage()
    for T in [3] if is_short() else [8, 32, 3, 16, 64]:
        for name in ARGUMENTS:
            if deadline.is_over():
                records.add("left out", run=name, T=T)
                continue
            record(records, "row", partial(solver, name, T), run=name, T=T)
    for name in ("gram", "combine"):
        T = 2 if is_short() else 64
        record(records, "row", partial(wide, name, T), run=name, T=T, case="1 x 2^20")


if __name__ == "__main__":
    main()
