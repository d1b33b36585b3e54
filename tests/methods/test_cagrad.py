"""CAGrad: optimality in its ball, the closed form of two tasks, stationary points, rounding."""

from __future__ import annotations

import math

import mpmath
import pytest
import torch
from certificates import cagrad_certificate
from hard_grams import KINDS, hard_gram, two_task_gram
from hypothesis import given, settings
from hypothesis import strategies as st

import mtlkernels
from mtlkernels import CAGrad, Status

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("kind", KINDS)
@given(T=st.integers(2, 64), c=st.sampled_from([0.1, 0.4, 0.5, 0.9]), seed=st.integers(0, 10**6))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_cagrad_is_optimal(kind: str, T: int, c: float, seed: int) -> None:
    K = hard_gram(kind, T, seed)
    method = CAGrad(c=c)
    assert cagrad_certificate(K, method(K), c) <= 1e-9
    assert method.status.tolist() == [0] * T


@given(
    a=st.floats(1e-8, 1e8),
    b=st.floats(1e-8, 1e8),
    cosine=st.floats(-0.999, 0.999),
    c=st.floats(0.05, 0.95),
)
@settings(max_examples=200, deadline=None)
def test_cagrad_of_two_tasks_in_closed_form(a: float, b: float, cosine: float, c: float) -> None:
    """The closed form cancels where norms differ much, so it is evaluated with 60 digits."""
    K = two_task_gram(a, b, cosine)
    with mpmath.workdps(60):
        a, b, r = (mpmath.mpf(float(x)) for x in (K[0, 0], K[1, 1], K[0, 1]))
        D, det, p, A = a + b - 2 * r, a * b - r * r, r - b, (a - b) / 2
        k = c * mpmath.sqrt(a + b + 2 * r) / 2

        def length(x: mpmath.mpf) -> mpmath.mpf:
            return mpmath.sqrt(D * x * x + 2 * p * x + b)

        candidates = [mpmath.mpf(0), mpmath.mpf(1)]
        if D * k * k > A * A:
            y = -A * mpmath.sqrt(det / (D * k * k - A * A))
            candidates.append(min(max((y - p) / D, mpmath.mpf(0)), mpmath.mpf(1)))
        x = min(candidates, key=lambda x: A * x + k * length(x))
        expected = [float(0.5 + k / length(x) * share) for share in (x, 1 - x)]
    error = (CAGrad(c=c)(K) - torch.tensor(expected, dtype=torch.float64)).abs()
    # as lengths along each gradient: weights of a gradient 1e8 times shorter are 1e8 times larger
    norms = K.diagonal().sqrt()
    assert (error * norms).max() <= 1e-12 * max(
        w * float(n) for w, n in zip(expected, norms, strict=True)
    )


@pytest.mark.parametrize("T", [3, 6, 20])
def test_cagrad_at_a_stationary_point_takes_the_nearest_direction_without_conflict(T: int) -> None:
    """Gradients that span a plane positively, and a common part off it: no direction helps all in
    the plane, so d keeps the common part of g0 alone. The ball reaches it for c > 1."""
    G = torch.zeros(T, 4, dtype=torch.float64)
    angle = torch.arange(T, dtype=torch.float64) * 2 * math.pi / T
    G[:, 0], G[:, 1] = angle.cos() * torch.linspace(1, 3, T), angle.sin() * torch.linspace(1, 3, T)
    method = CAGrad(c=1.5)
    d = G.T @ method(G @ G.T)
    assert d.norm() <= 1e-9 * G.norm()
    assert method.status.tolist() == [Status.STATIONARY] * T


@pytest.mark.parametrize("delta", [1e-2, 1e-3, 3e-4, 1e-4, 1e-5, 0.0])
def test_cagrad_stays_in_its_ball_on_float32_gradients_that_nearly_oppose(delta: float) -> None:
    for seed in range(40):
        g, h, e = torch.randn(3, 4096, generator=torch.Generator().manual_seed(seed))
        G = torch.stack([g, -g + delta * e, h])
        (d,), _ = mtlkernels.aggregate([[row] for row in G], CAGrad(c=0.4))
        g0 = G.double().mean(dim=0)
        assert (d - g0).norm() <= 1.05 * 0.4 * g0.norm()


def test_cagrad_says_where_it_hangs_on_rounding() -> None:
    g, h, e = torch.randn(3, 100, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    G = torch.stack([g, -g + 1e-6 * e, h])
    method = CAGrad(c=0.4)
    assert method(G @ G.T).isfinite().all()
    assert method.status.tolist() == [Status.ILL_CONDITIONED] * 3


def test_cagrad_conventions() -> None:
    K = hard_gram("conflicting", 4, seed=0)
    plain = CAGrad(c=0.7)(K)
    torch.testing.assert_close(CAGrad(c=0.7, rescale=1)(K), plain / 1.49)
    torch.testing.assert_close(CAGrad(c=0.7, rescale=2)(K), plain / 1.7)
    torch.testing.assert_close(CAGrad(c=0.7, reduction="sum")(K), 4 * plain)
    torch.testing.assert_close(CAGrad(c=0.0)(K), torch.full((4,), 0.25, dtype=torch.float64))
