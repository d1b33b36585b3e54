"""The row methods that keep something, gradients to give them, and what they answer."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from row_formulas import flat_rows
from torch import Tensor

import mtlkernels
from mtlkernels import (
    DBMTL,
    ExcessMTL,
    GradDrop,
    LRAnnealing,
    MoCo,
    PCGrad,
    RowMethod,
    Tracked,
)

STATEFUL: dict[str, Callable[[], RowMethod]] = {
    "GradDrop": lambda: GradDrop(0.2, seed=5),
    "Tracked": lambda: Tracked(PCGrad(seed=2), 0.7),
    "DBMTL": lambda: DBMTL(0.9, sigma=0.5, log_losses=True),
    "MoCo": MoCo,
    "MoCo, LibMTL's": lambda: MoCo(project="softmax", rows="normalized"),
    "LRAnnealing": lambda: LRAnnealing(0.3),
    "ExcessMTL": lambda: ExcessMTL(0.5, warmup=2),
}
with_state = pytest.mark.parametrize("make", STATEFUL.values(), ids=STATEFUL.keys())
KEEPING = {name: make for name, make in STATEFUL.items() if name not in ("GradDrop", "LRAnnealing")}
keeping_rows = pytest.mark.parametrize("make", KEEPING.values(), ids=KEEPING.keys())


def batch(T: int, step: int, dtype: torch.dtype = torch.float64, n: int = 37) -> list[list[Tensor]]:
    """T gradients for two parameters; the second task does not reach the second one."""
    generator = torch.Generator().manual_seed(100 + step)
    rows = [
        [torch.randn(n, generator=generator).to(dtype), torch.randn(3, 5, generator=generator)]
        for _ in range(T)
    ]
    return [[a, None if t == 1 else b.to(dtype)] for t, (a, b) in enumerate(rows)]


def losses_of(T: int, step: int = 0) -> Tensor:
    return torch.linspace(0.5, 3 + step, T, dtype=torch.float64)


def matrix(rows: list[list[Tensor]]) -> Tensor:
    """(T, L) float64."""
    none = torch.empty(0, dtype=rows[0][0].dtype)
    return flat_rows([none if g is None else g for row in rows for g in row], len(rows))


def flat(direction: list[Tensor]) -> Tensor:
    return flat_rows(direction, 1)[0]


def step_of(method: RowMethod, T: int, step: int, dtype: torch.dtype = torch.float64):
    direction, report = mtlkernels.aggregate(batch(T, step, dtype), method, losses_of(T, step))
    return flat(direction), report


def close(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
