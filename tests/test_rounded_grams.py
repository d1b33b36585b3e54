"""Float32 gradients that depend on each other but for their rounding, which must not pass for them.

Either the answer is that of the same gradients in float64, or the status is not 0.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import mtlkernels
from mtlkernels import IMTLG, MGDA, AlignedMTL, ConFIG, GramMethod, IMGrad, Status

pytestmark = pytest.mark.usefixtures("one_thread")

SEEDS = 40
Make = Callable[[Tensor, Tensor], list[Tensor]]
CASES: dict[str, Make] = {
    "parallel": lambda g, h: [g, 1.7 * g],
    "opposite": lambda g, h: [g, -1.7 * g],
    "nearly opposite": lambda g, h: [g, -0.99 * g],
    "parallel and another": lambda g, h: [g, 1.7 * g, h],
    "opposite and another": lambda g, h: [g, -1.7 * g, h],
    "a sum": lambda g, h: [g, h, 0.3 * (g + h)],
    "a plane": lambda g, h: [g, h, g - 0.5 * h, -g - 0.2 * h],
}
METHODS: dict[str, Callable[[], GramMethod]] = {
    "AlignedMTL": AlignedMTL,
    "ConFIG": ConFIG,
    "IMTLG": IMTLG,
    "IMGrad": IMGrad,
    "MGDA": MGDA,
}


def gradients(make: Make, seed: int, size: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    g, h = (torch.randn(size, generator=generator) for _ in range(2))
    return make(g, h)


def direction(rows: list[Tensor], method: GramMethod) -> tuple[Tensor, int]:
    (found,), report = mtlkernels.aggregate([[row] for row in rows], method)
    assert found is not None
    return found.double(), int(report.status.max())


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("case", CASES)
def test_rounding_never_passes_for_gradients(name: str, case: str) -> None:
    for seed in range(SEEDS):
        rows = gradients(CASES[case], seed, 100 if seed % 2 else 2000)
        longest = max(float(row.norm()) for row in rows)
        got, status = direction(rows, METHODS[name]())
        want, exactly = direction([row.double() for row in rows], METHODS[name]())
        assert got.norm() <= 4 * len(rows) * longest, f"seed {seed}"
        if status == 0 and not exactly & Status.ILL_CONDITIONED:
            error = (got - want).norm() / max(float(want.norm()), 1e-3 * longest)
            assert error < 0.05, f"seed {seed}: {error:.3f}"


@pytest.mark.parametrize("method", [ConFIG(), IMTLG()], ids=repr)
def test_opposite_gradients_are_stationary_in_any_precision(method: GramMethod) -> None:
    for seed in range(SEEDS):
        rows = gradients(CASES["nearly opposite"], seed, 100)
        for precise in (rows, [row.double() for row in rows]):
            found, status = direction(precise, method)
            assert not found.any()
            assert status & Status.STATIONARY


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("off", [1e-9, -1e-9, 3e-8])
def test_products_beyond_the_norms_make_no_direction(backend: str, off: float) -> None:
    """A cosine of -1 up to rounding; beyond -1 it leaves a factor of one row of two."""
    K = torch.tensor([[1.0, -1 - off], [-1 - off, 1.0]], dtype=torch.float64)
    op = {"native": mtlkernels.ops, "reference": mtlkernels.reference}[backend].equiangular
    for length in (0, 1):
        weights, status = op(K, length)
        assert weights.tolist() == [0.0, 0.0]
        assert status[0] & Status.STATIONARY
