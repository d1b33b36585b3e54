"""MGDA, DualProj, UPGrad and IMGrad: optimality, oracles, closed forms."""

from __future__ import annotations

import math
from itertools import combinations

import mpmath
import pytest
import torch
from hard_grams import KINDS, hard_gram, random_rows, two_task_gram
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mtlkernels import (
    MGDA,
    CAGrad,
    DualProj,
    IMGrad,
    PCGrad,
    Status,
    UPGrad,
    backends,
    ops,
    reference,
)
from mtlkernels.reference.noise import RIDGE

pytestmark = pytest.mark.usefixtures("one_thread")

ALL = torch.empty(0, dtype=torch.float64)  # no preference


native = backends()["cpu"]["upgrad"]["serves"] == "native"
hard = given(T=st.integers(2, 64), seed=st.integers(0, 10**6))
few = settings(max_examples=12, deadline=None, derandomize=True)
every_kind = pytest.mark.parametrize("kind", KINDS)
two_tasks = given(a=st.floats(1e-8, 1e8), b=st.floats(1e-8, 1e8), cosine=st.floats(-0.999, 0.999))


def simplex_certificate(w: Tensor, slope: Tensor, size: Tensor) -> float:
    """How far w is from a minimiser over the simplex, from the objective's slope at w: no task's
    slope lies below their mean under w, each in shares of the terms it is summed from."""
    assert float(w.min()) >= -1e-12
    assert abs(float(w.sum()) - 1) <= 1e-12
    return float(((w @ slope - slope) / size).max())


# --------------------------------------------------------------------------------------- MGDA


@every_kind
@hard
@few
def test_mgda_is_optimal(kind: str, T: int, seed: int) -> None:
    K = hard_gram(kind, T, seed)
    method = MGDA()
    w = method(K)
    assert simplex_certificate(w, K @ w, K.abs() @ w + w @ K @ w) <= 1e-9
    stationary = w @ K @ w <= 1e-14 * (w @ K.diagonal())
    assert method.status.tolist() == [int(stationary) * Status.STATIONARY] * T


@given(T=st.integers(1, 6), n=st.integers(1, 6), seed=st.integers(0, 10**6))
@few
def test_mgda_against_all_supports(T: int, n: int, seed: int) -> None:
    G = random_rows(T, n, seed)
    K = G @ G.T
    lowest = math.inf
    for size in range(1, T + 1):
        for support in combinations(range(T), size):
            S = list(support)
            y = torch.linalg.lstsq(K[S][:, S], torch.ones(size, 1).double()).solution[:, 0]
            if y.sum() > 1e-9 and y.min() >= 0:
                w = y / y.sum()
                lowest = min(lowest, float(w @ K[S][:, S] @ w))
    w = MGDA()(K)
    # where zero lies in the hull, all supports may be too singular for the oracle
    assert w @ K @ w <= lowest + 1e-12 * K.diagonal().max()


@two_tasks
@settings(max_examples=100, deadline=None)
def test_mgda_of_two_tasks_in_closed_form(a: float, b: float, cosine: float) -> None:
    K = two_task_gram(a, b, cosine)
    with mpmath.workdps(60):
        p, q, r = (mpmath.mpf(float(x)) for x in (K[0, 0], K[1, 1], K[0, 1]))
        first = min(max((q - r) / (p + q - 2 * r), mpmath.mpf(0)), mpmath.mpf(1))
        expected = torch.tensor([float(first), float(1 - first)], dtype=torch.float64)
    torch.testing.assert_close(MGDA()(K), expected, rtol=1e-12, atol=1e-12)


def test_mgda_where_zero_lies_in_the_hull() -> None:
    angle = 2 * math.pi * torch.arange(5, dtype=torch.float64) / 5
    G = torch.stack([angle.cos(), angle.sin()], 1) * torch.linspace(1, 1e3, 5).double()[:, None]
    method = MGDA()
    w = method(G @ G.T)
    assert (G.T @ w).norm() <= 1e-6 * (w * G.norm(dim=1)).sum()
    assert method.status.tolist() == [Status.STATIONARY] * 5


def test_mgda_of_a_rank_so_low_that_many_pivots_are_rounding() -> None:
    """Rounding below floored pivots grows from one to the next, to infinity, where nothing holds
    it back: this matrix showed it."""
    K = hard_gram("low-rank", 40, seed=565978658)
    w = MGDA()(K)
    assert simplex_certificate(w, K @ w, K.abs() @ w + w @ K @ w) <= 1e-9


# ------------------------------------------------------------------------- DualProj and UPGrad


def projection_certificate(K: Tensor, u: Tensor, weights: Tensor) -> float:
    """Zero if and only if weights - u >= 0, G d >= 0, and either is zero in each task."""
    norm = K.diagonal().sqrt()
    C, v, length = K / norm / norm[:, None], norm * (weights - u), norm * u
    gain, size = C @ (norm * weights), C.abs() @ (norm * weights.abs()) + length.max()
    assert float(v.min()) >= -1e-9 * float(length.max())
    complementary = (gain * v).abs() / size / v.abs().max().clamp_min(float(length.max()))
    return max(float((-gain / size).max()), float(complementary.max()))


def solved_for(K: Tensor, kind: str, status: Tensor) -> Tensor:
    """K, or K with the ridge where the status tells of one: many tasks in few dimensions."""
    flags = set(status.tolist())
    if kind == "low-rank" and flags == {Status.ILL_CONDITIONED}:
        return K + RIDGE * torch.diag(K.diagonal())
    assert flags == {0}
    return K


@every_kind
@hard
@few
def test_dualproj_is_the_projection(kind: str, T: int, seed: int) -> None:
    K = hard_gram(kind, T, seed)
    method = DualProj()
    weights = method(K)
    u = torch.full((T,), 1 / T, dtype=torch.float64)
    assert projection_certificate(solved_for(K, kind, method.status), u, weights) <= 1e-9


@every_kind
@given(T=st.integers(2, 64 if native else 16), seed=st.integers(0, 10**6))
@few
def test_upgrad_conflicts_with_no_task(kind: str, T: int, seed: int) -> None:
    K = hard_gram(kind, T, seed)
    method = UPGrad()
    weights = method(K)
    K = solved_for(K, kind, method.status)
    norm = K.diagonal().sqrt()
    size = K.abs() @ weights
    assert float((-(K @ weights) / size).max()) <= 1e-9
    assert float((norm * (1 / T - weights)).max()) <= 1e-9 * float(norm.max()) / T


@every_kind
@given(T=st.integers(2, 20), seed=st.integers(0, 10**6))
@few
def test_upgrad_is_the_mean_of_projections(kind: str, T: int, seed: int) -> None:
    K = hard_gram(kind, T, seed)
    method = UPGrad()
    together = method(K)
    alone = [ops.dualproj(K, u) for u in torch.eye(T, dtype=torch.float64)]
    for (weights, status), u in zip(alone, torch.eye(T, dtype=torch.float64), strict=True):
        assert projection_certificate(solved_for(K, kind, status), u, weights) <= 1e-9
    if method.status[0] or any(status[0] for _, status in alone):
        return  # one that needs the ridge brings it to all
    norm = K.diagonal().sqrt()
    difference = norm * (together - sum(weights for weights, _ in alone) / T)
    assert difference @ (K / norm / norm[:, None]) @ difference <= (1e-9 * norm.max()) ** 2


@two_tasks
@settings(max_examples=100, deadline=None)
def test_projections_of_two_tasks_in_closed_form(a: float, b: float, cosine: float) -> None:
    K = two_task_gram(a, b, cosine)
    r = float(K[0, 1])
    torch.testing.assert_close(UPGrad()(K), PCGrad()(K) / 2, rtol=1e-12, atol=0)
    expected = torch.tensor([max(0.5, -r / (2 * a)), max(0.5, -r / (2 * b))], dtype=torch.float64)
    torch.testing.assert_close(DualProj()(K), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("make", [UPGrad, DualProj])
def test_preference(make) -> None:
    K = hard_gram("conflicting", 4, seed=3)
    p = torch.tensor([0.0, 3.0, 1.0, 0.5], dtype=torch.float64) / 4.5
    got = make((7 * p).tolist())(K)
    if make is DualProj:
        assert projection_certificate(K, p, got) <= 1e-9
    else:
        parts = [share * make(row)(K) for share, row in zip(p, torch.eye(4).tolist(), strict=True)]
        torch.testing.assert_close(got, sum(parts), rtol=1e-9, atol=1e-12)


# ------------------------------------------------------------------------------------- IMGrad


@pytest.mark.parametrize("form", ["paper", "code"])
@every_kind
@hard
@few
def test_imgrad_is_optimal(form: str, kind: str, T: int, seed: int) -> None:
    c = 0.8
    K = hard_gram(kind, T, seed)
    method = IMGrad(c, form=form)
    weights = method(K)
    if method.status[0] == Status.STATIONARY:
        w = MGDA()(K)
        assert w @ K @ w <= 1e-14 * (w @ K.diagonal())
        expected = CAGrad(c)(K)
        torch.testing.assert_close(weights, expected, rtol=1e-12, atol=0)
        return
    assert method.status.tolist() == [0] * T
    b, nearest = K.mean(dim=1), MGDA()(K)
    k = c * float(b.mean().sqrt())
    cosine = float(b @ nearest / (b.mean() * (nearest @ K @ nearest)).sqrt())
    v = weights - 1 / T
    assert abs(float((v @ K @ v).sqrt()) / k - 1) <= 1e-9
    w = v / v.sum()
    if form == "paper":
        linear, pull = 1 - min(cosine, 1), 2 * min(cosine, 1) * k
    else:
        linear, pull = 1.5 - min(cosine, 1), min(cosine, 1) * k / float((w @ K @ w).sqrt())
    slope = linear * b + pull * (K @ w)
    terms = linear * b.abs() + pull * (K.abs() @ w.abs())
    # a slope is compared with the mean of all, which has the terms of all
    assert simplex_certificate(w, slope, terms + w.abs() @ terms) <= 1e-9


@pytest.mark.parametrize("scale", [1e-20, 1e-12, 1e-8, 1e-3, 1e3, 1e8])
def test_imgrads_paper_form_is_solved_in_the_gradients_own_units(scale: float) -> None:
    """A large factor leads to MGDA, a small one to the task least aligned with the mean."""
    K = hard_gram("random", 6, seed=2)
    weights = IMGrad(form="paper")(scale**2 * K)
    w = (weights - 1 / 6) / (weights - 1 / 6).sum()
    if scale == 1e8:
        torch.testing.assert_close(w, MGDA()(K), rtol=0, atol=1e-6)
    if scale <= 1e-8:
        expected = torch.zeros(6, dtype=torch.float64)
        expected[K.mean(dim=1).argmin()] = 1
        torch.testing.assert_close(w, expected, rtol=0, atol=1e-6)
    code = IMGrad()
    torch.testing.assert_close(code(scale**2 * K), code(K), rtol=1e-10, atol=0)


def test_imgrad_conventions() -> None:
    K = hard_gram("random", 4, seed=0)
    plain = IMGrad(0.7)(K)
    torch.testing.assert_close(IMGrad(0.7, rescale=1)(K), plain / 1.49)
    torch.testing.assert_close(IMGrad(0.7, rescale=2)(K), plain / 1.7)
    torch.testing.assert_close(IMGrad(0.0)(K), torch.full((4,), 0.25, dtype=torch.float64))
    g = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
    opposite = torch.cat([g, -g])
    assert (opposite.T @ IMGrad()(opposite @ opposite.T)).norm() == 0


# ---------------------------------------------------------------------------- both ways, words


@every_kind
@pytest.mark.parametrize("T", [1, 3, 12, 24])
def test_native_and_reference_agree(kind: str, T: int) -> None:
    K = hard_gram(kind, T, seed=T)
    norm = K.diagonal().sqrt()
    C = K / norm / norm[:, None]
    pairs = [
        (ops.mgda(K), reference.mgda(K)),
        (ops.dualproj(K, ALL), reference.dualproj(K, ALL)),
        (ops.upgrad(K, ALL), reference.upgrad(K, ALL)),
        *((ops.imgrad(K, 0.8, f, 0), reference.imgrad(K, 0.8, f, 0)) for f in (0, 1)),
    ]
    for (weights, status), (expected, expected_status) in pairs:
        assert torch.equal(status, expected_status)
        d, e = norm * (weights - expected), norm * expected
        size = (e @ C.abs() @ e).sqrt()  # as directions: weights need not be unique
        assert (d @ C @ d).clamp_min(0).sqrt() <= 1e-7 * size


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: UPGrad([1.0, -1.0]), "preference"),
        (lambda: DualProj([0.0, 0.0]), "preference"),
        (lambda: DualProj([math.nan, 1.0]), "preference"),
        (lambda: UPGrad([]), "preference"),
        (lambda: UPGrad([1.0])(torch.eye(2).double()), "1 numbers for 2 tasks"),
        (lambda: IMGrad(-1.0), "c=-1"),
        (lambda: IMGrad(form="both"), "form"),
        (lambda: IMGrad(rescale=3), "rescale"),
    ],
)
def test_wrong_arguments_are_named(make, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        make()
