"""Gradients that depend on each other, or nearly: answers against 60 digits, or flagged."""

from __future__ import annotations

import re
from pathlib import Path

import exact_answers as exact
import pytest
import torch
from dependent_gradients import KINDS, Problem, scaled, sums
from exact_answers import mpf
from torch import Tensor

import mtlkernels
from mtlkernels import IMTLG, MGDA, AlignedMTL, ConFIG, GramMethod, Status, ops, reference
from mtlkernels import GramMethod as Method
from mtlkernels.reference import noise

pytestmark = pytest.mark.usefixtures("one_thread")

OFF, STABLE = 1e-4, 1e-6
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
NONE = torch.empty(0, dtype=torch.float64)
SOLVERS = {
    "aligned-min": ("aligned", (None, 0, False), exact.aligned("min")),
    "aligned-median": ("aligned", (None, 1, False), exact.aligned("median")),
    "aligned-rmse": ("aligned", (None, 2, False), exact.aligned("rmse")),
    "imtlg": ("equiangular", (1,), exact.equiangular(True)),
    "config": ("equiangular", (0,), exact.equiangular(False)),
    "mgda": ("mgda", (), exact.mgda),
    "cagrad": ("cagrad", (0.4, 0, False), exact.cagrad(0.4)),
    "imgrad": ("imgrad", (0.8, 1, 0), exact.imgrad(0.8)),
    "upgrad": ("upgrad", (NONE,), exact.upgrad),
    "dualproj": ("dualproj", (NONE,), exact.dualproj),
    "nash": ("fairgrad", (1.0, None, float("inf")), exact.fair(1.0)),
}
BACKENDS = {"native": ops, "reference": reference}


def answer(where: object, name: str, rows: Tensor) -> tuple[list[object], bool]:
    op, numbers, _ = SOLVERS[name]
    w, status = getattr(where, op)(ops.gram(list(rows), len(rows)), *numbers)
    return [mpf(x) for x in w.tolist()], bool(status.any())


def off(problem: Problem, name: str, w: list[object]) -> float:
    """The error against the stored gradients, or the exact relation that storing rounded."""
    solve = SOLVERS[name][2]
    K = exact.exact_gram(problem.rows)
    found = exact.error(w, solve(K, w), K)
    if problem.relation is not None and found > OFF:
        ideal = exact.exact_gram(*problem.relation)
        found = min(found, exact.error(w, solve(ideal, w), ideal))
    return found


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", SOLVERS)
def test_an_answer_is_right_or_flagged(name: str, backend: str) -> None:
    """`python -m benchmarks.exactness` does the same with thousands of problems."""
    for place, kind in enumerate(KINDS):
        for dtype in DTYPES:
            for seed in range(10 * place, 10 * place + (4 if backend == "native" else 1)):
                problem = KINDS[kind](seed, dtype)
                w, flagged = answer(BACKENDS[backend], name, problem.rows)
                try:
                    assert flagged or off(problem, name, w) <= OFF, f"{kind} {dtype} {seed}"
                except ArithmeticError:  # no solution, or none that the oracle can find
                    assert flagged, f"{kind} {dtype} {seed}"


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("kind", ["cancelling", "wide", "plain"])
def test_what_is_known_is_not_flagged(kind: str, name: str) -> None:
    """Of answers that rounding of the gradients moves by less than 1e-6."""
    stable = 0
    for seed in range(6):
        rows = KINDS[kind](seed, torch.float64).rows
        w, flagged = answer(ops, name, rows)
        K, moved, cross = exact.rounded_pair(rows, torch.Generator().manual_seed(seed))
        solve = SOLVERS[name][2]
        try:
            right, other = solve(K, w), solve(moved, w)
        except ArithmeticError:
            continue
        if exact.moves(right, K, other, moved, cross) < STABLE:
            stable += 1
            assert not flagged, f"seed {seed}"
    assert stable > 0


# ------------------------------------------------------------------------------- three shapes


def direction(rows: Tensor, method: Method) -> tuple[float, Tensor]:
    (found,), report = mtlkernels.aggregate([[row] for row in rows], method)
    assert found is not None
    return float(found.double().norm()), report.status


@pytest.mark.parametrize("apart", [1e-3, 1e-4, 1e-5])
def test_a_near_pair_has_the_length_of_its_smallest_singular_value(apart: float) -> None:
    g, e = torch.randn(2, 1000, generator=torch.Generator().manual_seed(0))
    rows = torch.stack([g, g + apart * e])
    K = exact.exact_gram(rows)
    expected = float(exact.length(exact.aligned("min")(K, None), K))
    length, status = direction(rows, AlignedMTL())
    assert length == pytest.approx(expected, rel=1e-4)
    assert status.tolist() == [0, 0]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("method", [ConFIG(), IMTLG(), AlignedMTL()], ids=repr)
def test_gradients_that_nearly_cancel_keep_their_direction(method: GramMethod, seed: int) -> None:
    a, h, k = torch.randn(3, 1000, generator=torch.Generator().manual_seed(seed))
    rows = torch.stack([a, 3e-4 * h - a, k])
    solve = {
        "ConFIG": exact.equiangular(False),
        "IMTLG": exact.equiangular(True),
        "AlignedMTL": exact.aligned("min"),
    }[type(method).__name__]
    K = exact.exact_gram(rows)
    w = method(ops.gram(list(rows), 3))
    assert exact.error([mpf(x) for x in w.tolist()], solve(K, None), K) <= 1e-6
    assert method.status.tolist() == [0, 0, 0]


@pytest.mark.parametrize("make", [sums, scaled])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sums_and_multiples_count_as_dependent(make, dtype: torch.dtype) -> None:
    """What is left of them is the rounding of a + b and of 1.7 g, at or below the noise of K."""
    methods = {
        "min": (AlignedMTL(), exact.aligned("min")),
        "rmse": (AlignedMTL("rmse"), exact.aligned("rmse")),
        "imtlg": (IMTLG(), exact.equiangular(True)),
        "config": (ConFIG(), exact.equiangular(False)),
    }
    problem = make(3, dtype)
    assert problem.relation is not None
    K = exact.exact_gram(*problem.relation)
    for name, (method, solve) in methods.items():
        length, status = direction(problem.rows, method)
        expected = float(exact.length(solve(K, None), K))
        assert length == pytest.approx(expected, rel=1e-5), name
        assert set(status.tolist()) <= {0, int(Status.ILL_CONDITIONED)}


def test_sums_of_coarse_numbers_are_what_they_are_stored_as() -> None:
    """In bfloat16 the rounding of a + b is far above the noise of K: the rank is full."""
    rows = sums(3, torch.bfloat16).rows
    K = exact.exact_gram(rows)
    w, status = ops.aligned(ops.gram(list(rows), len(rows)))
    error = exact.error([mpf(x) for x in w.tolist()], exact.aligned("min")(K, None), K)
    assert error <= 1e-6
    assert not status.any()


# ------------------------------------------------------------------------------ other corners


@pytest.mark.parametrize("method", [ConFIG(), IMTLG()], ids=repr)
def test_opposite_gradients_are_stationary_in_any_precision(method: GramMethod) -> None:
    for seed in range(20):
        g = torch.randn(100, generator=torch.Generator().manual_seed(seed))
        for rows in (torch.stack([g, -1.5 * g]), torch.stack([g, -0.99 * g]).double()):
            length, status = direction(rows, method)
            if not status.any():  # 1.5 g was rounded: there is a direction, and K knows it
                continue
            assert length == 0 or bool((status & Status.ILL_CONDITIONED).all())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("off_by", [2.0**-52, -(2.0**-52)])
def test_opposite_up_to_the_noise_makes_no_direction(backend: str, off_by: float) -> None:
    K = torch.tensor([[1.0, -1 - off_by], [-1 - off_by, 1.0]], dtype=torch.float64)
    for length in (0, 1):
        weights, status = BACKENDS[backend].equiangular(K, length)
        assert weights.tolist() == [0.0, 0.0]
        assert status[0] & Status.STATIONARY


@pytest.mark.parametrize("backend", BACKENDS)
def test_products_beyond_the_norms_are_flagged(backend: str) -> None:
    K = torch.tensor([[1.0, -1 - 1e-9], [-1 - 1e-9, 1.0]], dtype=torch.float64)
    for length in (0, 1):
        assert BACKENDS[backend].equiangular(K, length)[1].all()
    assert BACKENDS[backend].aligned(K, None, 0, False)[1].all()


def test_nearest_points_are_known_where_gradients_nearly_oppose() -> None:
    g, h = torch.randn(2, 500, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    method = MGDA()
    for apart in (1e-3, 1e-5):
        method(ops.gram([g, apart * h - g], 2))
        assert method.status.tolist() == [0, 0]
    method(ops.gram([g, 1e-8 * h - g], 2))
    assert method.status.all()


def test_the_noise_is_one_number_in_every_language() -> None:
    source = Path(mtlkernels.__file__).parent.parent / "csrc" / "linalg" / "noise.h"
    text = source.read_text()
    assert "constexpr double kNoise = kGramNoise / 8;" in text
    assert noise.NOISE == reference.GRAM_NOISE / 8
    numbers = dict(re.findall(r"constexpr double k(\w+) = ([^;]+);", text))
    assert eval(numbers["Clear"]) == noise.CLEAR
    assert float(numbers["Tolerance"]) == noise.TOLERANCE
    assert numbers["Ridge"] == "256 * kNoise"
    assert noise.RIDGE == 256 * noise.NOISE
    triton = Path(mtlkernels.__file__).parent / "triton_kernels" / "cagrad.py"
    if triton.exists():
        found = dict(re.findall(r"(\w+): tl.constexpr = tl.constexpr\((.+)\)", triton.read_text()))
        for name in ("NOISE", "TOLERANCE", "RIDGE"):
            assert eval(found[name]) == getattr(noise, name)
