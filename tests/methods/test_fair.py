"""NashMTL, FairGrad, PIVRG: (K w)_i = (p_i / w_i)^(1/alpha), checked by its own residual."""

from __future__ import annotations

import math

import mpmath
import pytest
import torch
from hard_grams import KINDS, hard_gram, random_rows, two_task_gram
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import mtlkernels
from mtlkernels import PIVRG, FairGrad, NashMTL, Status, ops, reference
from mtlkernels.reference.noise import RIDGE

pytestmark = pytest.mark.usefixtures("one_thread")

ALPHAS = (0.1, 0.5, 1.0, 2.0, 5.0, 20.0)


def residual(K: Tensor, w: Tensor, alpha: float, p: Tensor | float = 1.0) -> float:
    """The largest error of an equation, as a share of the terms it is the difference of."""
    wanted = (p / w) ** (1 / alpha)
    return float(((K @ w - wanted).abs() / (K.abs() @ w + wanted)).max())


@pytest.mark.parametrize("kind", KINDS)
@given(T=st.integers(2, 64), alpha=st.sampled_from(ALPHAS), seed=st.integers(0, 10**6))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_fairgrad_is_optimal(kind: str, T: int, alpha: float, seed: int) -> None:
    K = hard_gram(kind, T, seed)
    method = FairGrad(alpha)
    w = method(K)
    if int(method.status[0]):  # few dimensions: zero may lie in the hull
        assert kind == "low-rank"
        assert method.status[0] in (Status.NO_SOLUTION, Status.ILL_CONDITIONED)
        none = bool(method.status[0] & Status.NO_SOLUTION)
        K = K + (1e-6 if none else RIDGE) * torch.diag(K.diagonal())
    else:
        assert method.status.tolist() == [0] * T
    assert w.min() > 0
    assert residual(K, w, alpha) <= 1e-9


@pytest.mark.parametrize("alpha", [0.02, 50.0, 1000.0])
@pytest.mark.parametrize("kind", ["random", "nearly-parallel", "conflicting"])
def test_alpha_may_be_extreme(kind: str, alpha: float) -> None:
    K = hard_gram(kind, 6, seed=0)
    method = FairGrad(alpha)
    assert residual(K, method(K), alpha) <= 1e-9
    assert method.status.tolist() == [0] * 6


def test_limits_of_alpha() -> None:
    G = random_rows(4, 30, seed=1)
    K = G @ G.T / 30
    torch.testing.assert_close(FairGrad(1e-6)(K), torch.ones(4).double(), rtol=1e-4, atol=0)
    largest = FairGrad(1e6)(K)
    torch.testing.assert_close(K @ largest, torch.ones(4).double(), rtol=1e-4, atol=0)
    torch.testing.assert_close(FairGrad(1.0)(K), NashMTL(max_norm=None)(K), rtol=0, atol=0)


@pytest.mark.parametrize("T", [1, 2, 7, 40])
def test_the_nash_direction_has_length_sqrt_t_before_the_clip(T: int) -> None:
    K = hard_gram("badly-scaled", T, seed=T)
    w = NashMTL(max_norm=None)(K)
    assert math.isclose(float(w @ K @ w), T, rel_tol=1e-12)
    for bound in (0.3, 1.0):
        clipped = NashMTL(max_norm=bound)(K)
        torch.testing.assert_close(clipped, w * bound / math.sqrt(T), rtol=1e-12, atol=0)
    torch.testing.assert_close(NashMTL(max_norm=1.01 * math.sqrt(T))(K), w, rtol=0, atol=0)


def scaled_error(K: Tensor, got: Tensor, expected: list[mpmath.mpf]) -> float:
    """As lengths along each gradient, as a share of the longest."""
    lengths = K.diagonal().sqrt()
    exact = torch.tensor([float(x) for x in expected], dtype=torch.float64)
    return float(((got - exact).abs() * lengths).max() / (exact.abs() * lengths).max())


@given(a=st.floats(1e-8, 1e8), b=st.floats(1e-8, 1e8), cosine=st.floats(-0.99, 1.0))
@settings(max_examples=100, deadline=None)
def test_nash_of_two_tasks_in_closed_form(a: float, b: float, cosine: float) -> None:
    K = two_task_gram(a, b, cosine)
    with mpmath.workdps(60):
        a, b, r = (mpmath.mpf(float(x)) for x in (K[0, 0], K[1, 1], K[0, 1]))
        share = mpmath.sqrt(1 + r / mpmath.sqrt(a * b))
        expected = [1 / mpmath.sqrt(a) / share, 1 / mpmath.sqrt(b) / share]
    # an ulp of K_12 is worth 1 / (1 + cos) ulps of the weights
    assert scaled_error(K, NashMTL(max_norm=None)(K), expected) <= 1e-12


@given(
    a=st.floats(1e-4, 1e4),
    b=st.floats(1e-4, 1e4),
    cosine=st.floats(-0.95, 1.0),
    ratio=st.floats(0.5, 2.0),
)
@settings(max_examples=50, deadline=None)
def test_two_tasks_at_alpha_2_solve_a_cubic(a: float, b: float, cosine: float, ratio: float):
    """w2 / w1 = s^2: sqrt(p1) (b s^3 + r s) = sqrt(p2) (r s^2 + a) has one positive root."""
    K = two_task_gram(a, b, cosine)
    p = torch.tensor([ratio, 2 - ratio if ratio < 2 else 0.5], dtype=torch.float64)
    with mpmath.workdps(60):
        a, b, r = (mpmath.mpf(float(x)) for x in (K[0, 0], K[1, 1], K[0, 1]))
        p1, p2 = (mpmath.mpf(float(x)) for x in p)
        q1, q2 = mpmath.sqrt(p1), mpmath.sqrt(p2)
        roots = mpmath.polyroots([q1 * b, -q2 * r, q1 * r, -q2 * a], maxsteps=500, extraprec=400)
        (s,) = [x.real for x in roots if abs(x.imag) < 1e-40 * abs(x) and x.real > 0]
        w1 = p1 ** (mpmath.mpf(1) / 3) / (a + r * s**2) ** (mpmath.mpf(2) / 3)
        expected = [w1, s**2 * w1]
    assert scaled_error(K, ops.fairgrad(K, 2.0, p)[0], expected) <= 1e-12


# --------------------------------------------------------------------------- no solution


@pytest.mark.parametrize("alpha", ALPHAS)
def test_opposite_gradients_have_no_solution_and_the_status_says_so(alpha: float) -> None:
    g = torch.tensor([[3.0, -4.0, 12.0]], dtype=torch.float64)
    G = torch.cat([g, -g])
    method = FairGrad(alpha)
    w = method(G @ G.T)
    assert method.status.tolist() == [Status.NO_SOLUTION] * 2
    assert w.isfinite().all()
    assert (G.T @ w).abs().max() <= 1e-9
    K = G @ G.T
    assert residual(K + 1e-6 * torch.diag(K.diagonal()), w, alpha) <= 1e-9


@pytest.mark.parametrize("method", [NashMTL(), NashMTL(max_norm=None), FairGrad(), PIVRG()])
def test_gradients_round_a_circle_have_no_solution(method) -> None:
    angle = torch.arange(3, dtype=torch.float64) * 2 * math.pi / 3
    G = torch.stack([angle.cos(), angle.sin()], dim=1)
    w = method(G @ G.T)
    assert method.status.tolist() == [Status.NO_SOLUTION] * 3
    assert (G.T @ w).abs().max() <= 1e-6


def test_nearly_opposite_gradients_have_one() -> None:
    G = torch.tensor([[1.0, 4e-3], [-1.0, 4e-3]], dtype=torch.float64)
    method = NashMTL(max_norm=None)
    d = G.T @ method(G @ G.T)
    assert method.status.tolist() == [0, 0]
    torch.testing.assert_close(d, torch.tensor([0.0, math.sqrt(2)]).double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_rank_deficient_gradients_in_the_thousands_all_end(alpha: float) -> None:
    """Some have no solution, or one so far out that Newton's method meets its bound first."""
    for seed in range(500):
        K = hard_gram("low-rank", 3 + seed % 30, seed)
        method = FairGrad(alpha)
        w = method(K)
        flags = int(method.status[0])
        assert flags in (0, Status.NO_SOLUTION, Status.ILL_CONDITIONED)
        ridge = (1e-6 if flags & Status.NO_SOLUTION else RIDGE) * torch.diag(K.diagonal())
        ridge = ridge if flags else 0
        assert residual(K + ridge, w, alpha) <= 1e-9


# ---------------------------------------------------------------------------------- PIVRG


def test_pivrg_without_degradations_is_fairgrad() -> None:
    K = hard_gram("random", 5, seed=2)
    torch.testing.assert_close(PIVRG()(K), FairGrad(2.0)(K), rtol=0, atol=0)


def test_pivrg_weighs_tasks_by_their_degradation() -> None:
    K = hard_gram("conflicting", 3, seed=2)
    method = PIVRG(bound=2.0, min_temp=1.0)
    method.update([0.0, 5.0, 10.0])
    ratio = method.importance[2] / method.importance[0]
    assert math.isclose(float(ratio), 2.0, rel_tol=1e-12)
    assert math.isclose(float(method.importance.sum()), 3.0, rel_tol=1e-12)
    assert residual(K, method(K), 2.0, method.importance) <= 1e-12
    method.update(torch.tensor([1.0, 1.0, 1.0]))
    torch.testing.assert_close(method.importance, torch.ones(3).double())
    warm = PIVRG(min_temp=10.0)
    warm.update([0.0, 1.0])
    assert math.isclose(float(warm.importance[1] / warm.importance[0]), math.exp(0.1))


def test_pivrg_state_survives_saving() -> None:
    first, second = PIVRG(), PIVRG()
    first.update([1.0, 30.0, -4.0])
    second.load_state_dict(first.state_dict())
    K = hard_gram("random", 3, seed=0)
    assert torch.equal(first(K), second(K))
    second.load_state_dict(PIVRG().state_dict())
    assert len(second.importance) == 0


def test_pivrg_names_what_does_not_fit() -> None:
    method = PIVRG()
    with pytest.raises(ValueError, match="one finite number per task"):
        method.update([1.0, math.nan])
    with pytest.raises(ValueError, match="one finite number per task"):
        method.update(torch.ones(2, 2))
    method.update([1.0, 2.0])
    with pytest.raises(ValueError, match="2 degradations were given for 3 tasks"):
        method(torch.eye(3, dtype=torch.float64))


# ------------------------------------------------------------------ reference, arguments


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("kind", KINDS)
def test_reference_agrees(kind: str, alpha: float) -> None:
    for T in (1, 2, 9):
        K = hard_gram(kind, T, seed=T)
        p = torch.linspace(0.5, 2, T, dtype=torch.float64)
        got, status = ops.fairgrad(K, alpha, p, 3.0)
        expected, flags = reference.fairgrad(K, alpha, p, 3.0)
        assert torch.equal(status, flags)
        if not int(flags[0]) & Status.NO_SOLUTION:  # there the ridge decides what rounding leaves
            torch.testing.assert_close(got, expected, rtol=1e-8, atol=0)


def test_an_importance_that_is_not_positive_poisons_the_weights() -> None:
    K = torch.eye(2, dtype=torch.float64)
    for bad in (0.0, -1.0, math.nan, math.inf):
        p = torch.tensor([1.0, bad], dtype=torch.float64)
        assert ops.fairgrad(K, 2.0, p)[0].isnan().all()
    with pytest.raises(RuntimeError, match="importance must be a contiguous float64 vector"):
        ops.fairgrad(K, 2.0, torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("exponent", [-12, -6, 6, 12])
def test_degree_of_fairgrad(alpha: float, exponent: int) -> None:
    G = random_rows(5, 40, seed=7).to(torch.float32)
    scale = 10.0**exponent
    base, _ = mtlkernels.aggregate([[g] for g in G], FairGrad(alpha))
    got, _ = mtlkernels.aggregate([[g] for g in G * scale], FairGrad(alpha))
    expected = base[0].double() * scale ** ((1 - alpha) / (1 + alpha))
    torch.testing.assert_close(got[0].double(), expected, rtol=2e-5, atol=2e-6 * expected.norm())


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: FairGrad(0.0), "alpha=0.0"),
        (lambda: FairGrad(math.inf), "alpha=inf"),
        (lambda: NashMTL(0.0), "max_norm=0.0"),
        (lambda: NashMTL(math.nan), "max_norm=nan"),
        (lambda: PIVRG(bound=1.0), "bound=1.0"),
        (lambda: PIVRG(min_temp=0.0), "min_temp=0.0"),
    ],
)
def test_wrong_arguments_are_named(make, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        make()
