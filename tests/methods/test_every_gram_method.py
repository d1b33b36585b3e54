"""What holds for every registered Gram method: edge cases, hard matrices, symmetries, scale."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from gram_methods import (
    BLIND,
    DEGREE,
    DRAWS,
    GRAM_METHODS,
    NO_DEGREE,
    PRIORITY,
    TWO_TASKS,
    every_order,
    losses_of,
    tasks_for,
    weights_of,
)
from hard_grams import KINDS, hard_gram, random_rows
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import mtlkernels
from mtlkernels import Status

pytestmark = pytest.mark.usefixtures("one_thread")

every_name = pytest.mark.parametrize("name", GRAM_METHODS)
OF_MANY = [name for name in GRAM_METHODS if name not in TWO_TASKS]
of_many = pytest.mark.parametrize("name", OF_MANY)


def direction(name: str, G: Tensor) -> Tensor:
    return G.T @ weights_of(GRAM_METHODS[name](len(G)), G @ G.T)


# ---------------------------------------------------------------------------------- edge cases
# Delivered direction for one task with gradient g, |g| = 13, and for three identical ones, as
# factors of g. What is not named has the factor 1 for one task, and 3 or, as a mean, 1 for three.

ALPHA = {"FairGrad": 2.0, "PIVRG": 2.0, "FairGrad-0.5": 0.5, "FairGrad-20": 20.0}
ONE_TASK = {
    "FixedWeights": 0.5,
    "CAGrad": 1.4,
    "CAGrad-0.9-square": 1.9 / 1.81,
    "CAGrad-1.5-sum": 1.0,
    "PerPart": 1.4,
    "Reused": 1.4,
    "Preferred": 1.4,
    "ClippedTasks": 1.4 * 3 / 13,
    "LogLosses": 0.5,
    "IMGrad": 1.8,
    "IMGrad-paper": 1.8,
    "IMGrad-square": 1.8 / 1.64,
    "Normalized": 1 / 13,
    "Normalized-CAGrad": 1.4 / 13,
    "AvgNorm-2.5": 2.5 / 13,
    "NashMTL": 1 / 13,
    "NashMTL-exact": 1 / 13,
    **{name: 169 ** (-a / (a + 1)) for name, a in ALPHA.items()},
}
MEANS = {
    *("Mean", "PCGrad-mean", "MGDA", "CRMOGM", "UPGrad", "DualProj", "IMTLG", "RandomWeights"),
    *("AlignedMTL-mean", "SDMGrad", "SDMGrad-slow", "MoDo", "NashMTL", "Normalized", "LogLosses"),
    *("PCD", "PCD-half"),
    *("CAGrad", "CAGrad-0.9-square", "Normalized-CAGrad", "PerPart", "Preferred", "ClippedTasks"),
    *("IMGrad", "IMGrad-paper", "IMGrad-square", "Reused"),
}
IDENTICAL = {
    **dict.fromkeys(("AvgNorm", "NTKWeights"), 9.0),
    "NashMTL-exact": math.sqrt(3) / 13,
    **{name: 3 * (3 * 169) ** (-a / (a + 1)) for name, a in ALPHA.items()},
}


@of_many
def test_one_task(name: str) -> None:
    g = torch.tensor([[3.0, -4.0, 12.0]], dtype=torch.float64)
    factor = ONE_TASK.get(name, 1.0)
    torch.testing.assert_close(direction(name, g), factor * g[0], rtol=1e-13, atol=0)


@of_many
def test_identical_gradients(name: str) -> None:
    g = torch.tensor([[3.0, -4.0, 12.0]], dtype=torch.float64)
    factor = IDENTICAL.get(name, ONE_TASK.get(name, 1.0) * (1 if name in MEANS else 3))
    got = direction(name, g.repeat(3, 1))
    torch.testing.assert_close(got, factor * g[0], rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", [n for n in OF_MANY if n not in {"RandomWeights", *PRIORITY}])
def test_opposite_gradients_cancel(name: str) -> None:
    g = torch.tensor([[3.0, -4.0, 12.0]], dtype=torch.float64)
    assert direction(name, torch.cat([g, -g])).abs().max() <= 1e-12


@pytest.mark.parametrize("name", [n for n in OF_MANY if n not in BLIND | DRAWS])
@pytest.mark.parametrize("zero", [0, 1, 3])
def test_a_zero_gradient_takes_no_part(name: str, zero: int) -> None:
    G = random_rows(4, 7, seed=3)
    if zero == 0 and name in PRIORITY:
        pytest.skip("the reduced problem has another primary task")
    G[zero] = 0
    others = [i for i in range(4) if i != zero]
    K = G @ G.T
    chosen, reduced = GRAM_METHODS[name](4), GRAM_METHODS[name](3)
    weights = weights_of(chosen, K, every_order(4))
    expected = weights_of(reduced, K[others][:, others], every_order(3))
    assert weights[zero] == 0
    # rounding is multiplied by each overshooting round of SDMGrad's default step
    tolerance = 1e-6 if name == "SDMGrad" else 1e-12
    torch.testing.assert_close(weights[others], expected, rtol=tolerance, atol=tolerance)
    assert chosen.status.tolist() == [Status.ZERO_GRADIENT if i == zero else 0 for i in range(4)]


@every_name
def test_all_gradients_zero(name: str) -> None:
    T = tasks_for(name, 3)
    chosen = GRAM_METHODS[name](T)
    assert weights_of(chosen, torch.zeros(T, T, dtype=torch.float64)).isfinite().all()
    assert chosen.status.tolist() == [Status.ZERO_GRADIENT] * T


@every_name
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_gradient_that_is_not_finite_is_named_and_poisons_the_direction(name: str, value) -> None:
    T = tasks_for(name, 4)
    G = random_rows(T, 7, seed=1)
    G[1, 5] = value
    chosen = GRAM_METHODS[name](T)
    weights = weights_of(chosen, G @ G.T)
    assert chosen.status.tolist() == [Status.NON_FINITE if i == 1 else 0 for i in range(T)]
    assert not (G.T @ weights).isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
@of_many
def test_hard_grams_are_solved(name: str, kind: str) -> None:
    """Optimality is each method's own test; this one reaches those that have none yet."""
    for T in (2, 5, 16, 40, 64):
        method = GRAM_METHODS[name](T)
        weights = weights_of(method, hard_gram(kind, T, seed=T))
        assert weights.isfinite().all()
        flags = {Status(flag) for flag in set(method.status.tolist())}
        allowed = {Status(0)}
        if kind == "low-rank":
            allowed |= {Status.STATIONARY, Status.NO_SOLUTION, Status.ILL_CONDITIONED}
        if kind == "nearly-parallel" and name == "AlignedMTL":
            allowed |= {Status.ILL_CONDITIONED}  # its length is the smallest singular value
        assert flags <= allowed


# ---------------------------------------------------------------------------------- symmetries


@pytest.mark.parametrize("name", [n for n in GRAM_METHODS if n not in NO_DEGREE])
@pytest.mark.parametrize("exponent", range(-12, 13, 3))
def test_scale_of_all_gradients(name: str, exponent: int) -> None:
    T = tasks_for(name, 5)
    G = random_rows(T, 40, seed=7).to(torch.float32)
    scale = 10.0**exponent
    losses = losses_of(T)
    base, _ = mtlkernels.aggregate([[g] for g in G], GRAM_METHODS[name](T), losses)
    got, _ = mtlkernels.aggregate([[g] for g in G * scale], GRAM_METHODS[name](T), losses)
    expected = base[0].double() * scale ** DEGREE.get(name, 1)
    tolerance = 1e-3 if name == "SDMGrad" else 2e-6
    torch.testing.assert_close(
        got[0].double(), expected, rtol=10 * tolerance, atol=tolerance * float(expected.norm())
    )


@pytest.mark.parametrize("name", sorted(NO_DEGREE))
def test_what_has_no_degree_has_none(name: str) -> None:
    G = random_rows(5, 40, seed=7)
    shrunk, plain = direction(name, 1e-3 * G), direction(name, G)
    for degree in (-1, 0, 1):
        assert (shrunk * 1e3**degree - plain).norm() > 1e-3 * plain.norm()


@pytest.mark.parametrize("name", [n for n in OF_MANY if n not in DRAWS | PRIORITY])
@given(T=st.integers(2, 8), seed=st.integers(0, 10**6), kind=st.sampled_from(["", "twin", "span"]))
@settings(max_examples=15, deadline=None, derandomize=True)
def test_permuting_tasks_permutes_weights(name: str, T: int, seed: int, kind: str) -> None:
    """Also with a gradient twice, and with one that is a combination of others."""
    G = random_rows(T, 12, seed)
    G = G - 0.5 * G.mean(dim=0)
    if kind:
        G[-1] = G[0] if kind == "twin" else G[0] + 0.5 * G[T // 2]
    K = G @ G.T
    permutation = torch.randperm(T, generator=torch.Generator().manual_seed(seed))
    first, second = GRAM_METHODS[name](T), GRAM_METHODS[name](T)
    order = every_order(T)
    weights = weights_of(first, K, order)
    moved = permutation.argsort()[order[permutation]]
    permuted = weights_of(second, K[permutation][:, permutation], moved)
    d, e = G.T @ weights, G[permutation].T @ permuted
    tolerance = 1e-3 if name == "SDMGrad" else 1e-8
    torch.testing.assert_close(d, e, rtol=tolerance, atol=tolerance * float(G.norm()))
    assert torch.equal(first.status[permutation], second.status)


@every_name
def test_columns_may_be_split_merged_and_rotated(name: str) -> None:
    T = tasks_for(name, 4)
    G, losses = random_rows(T, 30, seed=11), losses_of(T)
    rotated = G @ torch.linalg.qr(random_rows(30, 30, seed=12)).Q
    pieces = [list(g.split([1, 7, 0, 22])) for g in G]
    whole, report = mtlkernels.aggregate([[g] for g in G], GRAM_METHODS[name](T), losses)
    split, _ = mtlkernels.aggregate(pieces, GRAM_METHODS[name](T), losses)
    tolerance = 1e-4 if name == "SDMGrad" else 1e-10
    torch.testing.assert_close(torch.cat(split), whole[0], rtol=tolerance, atol=tolerance)
    _, turned = mtlkernels.aggregate([[g] for g in rotated], GRAM_METHODS[name](T), losses)
    torch.testing.assert_close(turned.weights, report.weights, rtol=tolerance, atol=tolerance)


DUPLICATES_CHANGE_NOTHING = ["MGDA", "CRMOGM", "Normalized", "IMTLG", "ConFIG", "FairGrad-20"]


@pytest.mark.parametrize("name", DUPLICATES_CHANGE_NOTHING)
def test_a_duplicate_does_not_turn_the_direction(name: str) -> None:
    """For rules about sets of gradients; the higher FairGrad's alpha, the nearer it is to one."""
    G = random_rows(4, 20, seed=5)
    d, e = direction(name, G), direction(name, G[[0, 1, 2, 3, 3]])
    tolerance = 0.1 if name == "FairGrad-20" else 1e-9
    assert (d / d.norm() - e / e.norm()).norm() <= tolerance


# ---------------------------------------------------------------------------------- other dtypes


@every_name
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_gram_matrix_of_another_library_is_taken(name: str, dtype: torch.dtype) -> None:
    """The weights are those of the given numbers, in float64."""
    T = tasks_for(name, 3)
    G = torch.randn(T, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    K = (G @ G.T).to(dtype)
    got = weights_of(GRAM_METHODS[name](T), K)
    assert got.dtype == torch.float64
    assert torch.equal(got, weights_of(GRAM_METHODS[name](T), K.double()))


INVERT = ["AlignedMTL", "ConFIG", "IMTLG"]


@pytest.mark.parametrize("name", [n for n in GRAM_METHODS if n.split("-")[0] in INVERT])
@pytest.mark.parametrize("wrap", [lambda method: method, mtlkernels.CRMOGM], ids=["", "CRMOGM"])
def test_rounding_of_another_librarys_gram_matrix_is_flagged(name: str, wrap: Callable) -> None:
    """Where it may move the direction, and only there."""
    base, noise, other = random_rows(3, 1000, seed=2)
    near = torch.stack([base, base + 1e-3 * noise, other])
    for G, flagged in ((near, True), (torch.stack([base, noise, other]), False)):
        method = wrap(GRAM_METHODS[name](3))
        weights_of(method, (G @ G.T).float())
        assert bool((method.status & Status.ILL_CONDITIONED).all()) == flagged
        method = wrap(GRAM_METHODS[name](3))
        weights_of(method, G @ G.T)
        assert not (method.status & Status.ILL_CONDITIONED).any()
