"""Rescaled gradients, the norm family by its other names, and fixed weights."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import mtlkernels
from mtlkernels import (
    MGDA,
    NTKMTL,
    SLW,
    AvgNorm,
    CAGrad,
    ClippedTasks,
    FixedWeights,
    LogLosses,
    NGDiff,
    Normalized,
    PCGrad,
    Preferred,
    Status,
    Sum,
    UPGrad,
)

pytestmark = pytest.mark.usefixtures("one_thread")

INNER = {"cagrad": CAGrad, "upgrad": UPGrad, "avgnorm": AvgNorm, "sum": Sum, "pcgrad": PCGrad}
every_inner = pytest.mark.parametrize("inner", INNER.values(), ids=INNER.keys())
LOSSES = torch.tensor([0.5, 2.0, 7.0, 1e-3], dtype=torch.float64)


def random_rows(T: int, n: int, seed: int) -> Tensor:
    G = torch.randn(T, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return G * 10 ** torch.linspace(-2, 2, T, dtype=torch.float64)[:, None]


def close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12 * float(expected.norm()))


@every_inner
def test_preconditions_are_the_method_on_scaled_gradients(inner) -> None:
    G = random_rows(4, 9, seed=1)
    n = G.norm(dim=1)
    preference = [1.0, 0.1, 3.0, 2.0]
    cases = [
        (Normalized(inner()), 1 / n),
        (Normalized(inner(), by="loss"), 1 / LOSSES),
        (Normalized(inner(), by="loss+"), 1 / LOSSES / n),
        (Preferred(inner(), preference), 4 * torch.tensor(preference, dtype=torch.float64) / 6.1),
        (ClippedTasks(inner(), 1.5), (1.5 / n).clamp_max(1)),
        (LogLosses(inner()), 1 / LOSSES),
    ]
    for method, scale in cases:
        scaled = scale[:, None] * G
        expected = scaled.T @ inner()(scaled @ scaled.T)
        close(G.T @ method(G @ G.T, LOSSES), expected)
        assert method.status.tolist() == [0] * 4


def test_kept_weights_go_to_the_gradients_as_they_are() -> None:
    G = random_rows(4, 9, seed=2)
    unit = G / G.norm(dim=1)[:, None]
    close(Normalized(MGDA(), keep_weights=True)(G @ G.T), MGDA()(unit @ unit.T))


@every_inner
@pytest.mark.parametrize("exponent", range(-12, 13, 4))
def test_scale_of_all_gradients(inner, exponent: int) -> None:
    """In float32, through aggregate; losses and clipping scale along where the rule is in units."""
    G = random_rows(4, 30, seed=3).to(torch.float32)
    scale = 10.0**exponent

    def direction(method, factor: float) -> Tensor:
        losses = (factor * LOSSES).to(torch.float64)
        (d,), _ = mtlkernels.aggregate([[factor * g] for g in G], method, losses)
        return d.double()

    cases = [
        (lambda _: Normalized(inner()), 0),
        (lambda _: Normalized(inner(), by="loss"), 0),
        (lambda _: Normalized(inner(), by="loss+"), -1),
        (lambda _: Preferred(inner(), [1, 2, 3, 4]), 1),
        (lambda factor: ClippedTasks(inner(), 0.7 * factor), 1),
        (lambda _: LogLosses(inner()), 0),
    ]
    for make, degree in cases:
        expected = direction(make(1.0), 1.0)
        got = direction(make(scale), scale) / scale**degree
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5 * float(expected.norm()))


@every_inner
def test_zero_and_broken_gradients_stay_what_they_are(inner) -> None:
    G = random_rows(4, 9, seed=4)
    G[2] = 0
    wrapped = [Normalized(inner()), ClippedTasks(inner(), 1.0), LogLosses(inner())]
    for method in wrapped:
        weights = method(G @ G.T, LOSSES)
        assert weights.isfinite().all()
        assert method.status.tolist() == [0, 0, Status.ZERO_GRADIENT, 0]
    for value in (math.nan, math.inf):
        G[1, 3] = value
        for method in wrapped:
            weights = method(G @ G.T, LOSSES)
            assert not (G.T @ weights).isfinite().all()
            assert method.status.tolist() == [0, Status.NON_FINITE, Status.ZERO_GRADIENT, 0]


@every_inner
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "wrap", [LogLosses, lambda m: Normalized(m, by="loss"), lambda m: Normalized(m, by="loss+")]
)
def test_a_loss_that_is_not_finite_is_flagged_and_poisons_the_weights(
    inner, bad: float, wrap
) -> None:
    G = random_rows(4, 9, seed=4)
    losses = LOSSES.clone()
    losses[1] = bad
    method = wrap(inner())
    assert method(G @ G.T, losses).isnan().all()
    assert method.status.tolist() == [0, Status.INVALID_LOSS, 0, 0]


def test_losses_reach_the_method_as_those_of_the_scaled_gradients() -> None:
    class Shows(Sum):
        def forward(self, gram: Tensor, losses: Tensor | None = None) -> Tensor:
            self.seen = losses
            return super().forward(gram, losses)

    K = torch.eye(4, dtype=torch.float64)
    shows = Shows()
    LogLosses(shows)(K, LOSSES)
    close(shows.seen, LOSSES.log())
    Preferred(shows, [1, 2, 3, 4])(K, LOSSES)
    close(shows.seen, LOSSES * torch.arange(1, 5) * 0.4)
    Normalized(shows)(K)
    assert shows.seen is None


# ------------------------------------------------------------------- norm family, fixed weights


@given(a=st.floats(1e-8, 1e8), b=st.floats(1e-8, 1e8), cosine=st.floats(-0.999, 0.999))
@settings(max_examples=50, deadline=None)
def test_norm_family_of_two_tasks_in_closed_form(a: float, b: float, cosine: float) -> None:
    r = cosine * math.sqrt(a * b)
    K = torch.tensor([[a, r], [r, b]], dtype=torch.float64)
    n = K.diagonal().sqrt()
    for method, length in [
        (NTKMTL(), math.sqrt((a + b) / 2)),
        (SLW(), 2 / (1 / math.sqrt(a) + 1 / math.sqrt(b))),
        (AvgNorm("max"), math.sqrt(max(a, b))),
        (AvgNorm(), math.sqrt(a + b + 2 * r)),
    ]:
        torch.testing.assert_close(method(K), length / n, rtol=1e-12, atol=0)
    signed = torch.tensor([1.0, -1.0]).double() / n
    torch.testing.assert_close(NGDiff()(K), signed, rtol=1e-12, atol=0)


def test_norm_family_by_avgnorm() -> None:
    K = random_rows(5, 9, seed=0)
    K = K @ K.T
    for method, scale in [(NTKMTL(), "rms"), (SLW(), "harmonic")]:
        assert torch.equal(method(K), AvgNorm(scale)(K))
    torch.testing.assert_close(SLW()(K).sum(), torch.tensor(5.0).double())


def test_ngdiff_edges() -> None:
    g = torch.tensor([[3.0, 4.0], [3.0, 4.0]], dtype=torch.float64)
    method = NGDiff()
    assert (g.T @ method(g @ g.T)).abs().max() == 0
    assert method(torch.diag(torch.tensor([4.0, 0.0]).double())).tolist() == [0.5, 0.0]
    assert method.status.tolist() == [0, Status.ZERO_GRADIENT]
    with pytest.raises(ValueError, match="two losses, retain and forget, and got 3"):
        method(torch.eye(3).double())


def test_fixed_weights() -> None:
    method = FixedWeights([1.0, -2.0, 0.5])
    got = method(torch.eye(3).double())
    assert got.tolist() == [1.0, -2.0, 0.5]
    got.zero_()  # a person may change what was returned
    assert method(torch.eye(3).double()).tolist() == [1.0, -2.0, 0.5]


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: Normalized(MGDA(), by="l1"), "by='l1'"),
        (lambda: Normalized("mgda"), "method is a str"),
        (lambda: Preferred(MGDA(), [1.0, -1.0]), "preference"),
        (lambda: Preferred(MGDA(), None), "preference=None"),
        (lambda: Preferred(MGDA(), [])(torch.eye(2).double()), "preference"),
        (lambda: Preferred(MGDA(), [1.0])(torch.eye(2).double()), "1 numbers for 2 tasks"),
        (lambda: ClippedTasks(MGDA(), 0.0), "max_norm=0.0"),
        (lambda: LogLosses(MGDA())(torch.eye(2).double()), "LogLosses needs"),
        (lambda: Normalized(MGDA(), by="loss")(torch.eye(2).double()), "Normalized needs"),
        (lambda: FixedWeights([]), "weights"),
        (lambda: FixedWeights([math.nan]), "weights"),
        (lambda: FixedWeights([1.0])(torch.eye(2).double()), "1 weights for 2 tasks"),
    ],
)
def test_wrong_arguments_are_named(make, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        make()
