"""GradVac, GradNorm, CR-MOGM and random weights: their rules step by step, and their state."""

from __future__ import annotations

import math

import pytest
import torch
from hard_grams import random_rows
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import mtlkernels
from mtlkernels import (
    CRMOGM,
    MGDA,
    GradNorm,
    GradVac,
    PCGrad,
    RandomWeights,
    Status,
    ops,
    reference,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def orders(T: int, step: int) -> Tensor:
    return ops.visiting_order(torch.tensor(4), torch.tensor(step), T)


def numbers(*x: float) -> Tensor:
    return torch.tensor(x, dtype=torch.float64)


# ------------------------------------------------------------------------------------- GradVac


def vaccinate(G: Tensor, order: Tensor, phi: Tensor, beta: float, update: str) -> Tensor:
    """The paper's algorithm on the vectors; phi moves in place."""
    total = torch.zeros_like(G[0])
    for i in range(len(G)):
        v = G[i].clone()
        for j in order[i].tolist():
            p, q = v @ G[j] / (v.norm() * G[j].norm()), phi[i, j].clone()
            if p < q:
                sine = (1 - q * q).sqrt()
                v += v.norm() * (q * (1 - p * p).sqrt() - p * sine) / (G[j].norm() * sine) * G[j]
            if p < q or update == "every":
                phi[i, j] = (1 - beta) * q + beta * p
        total += v
    return total


@pytest.mark.parametrize("update", ["every", "corrected"])
@given(T=st.integers(2, 12), n=st.integers(8, 60), seed=st.integers(0, 10**6))
@settings(max_examples=10, deadline=None, derandomize=True)
def test_gradvac_is_the_papers_algorithm_on_the_vectors(
    update: str, T: int, n: int, seed: int
) -> None:
    method = GradVac(beta=0.3, update=update)
    phi = torch.zeros(T, T, dtype=torch.float64)
    for step in range(4):
        G = random_rows(T, n, seed + step)
        got = G.T @ method(G @ G.T, order=orders(T, step))
        expected = vaccinate(G, orders(T, step), phi, 0.3, update)
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9 * float(G.norm()))
        torch.testing.assert_close(method.phi, phi, rtol=1e-9, atol=1e-9)


def test_gradvac_without_targets_is_pcgrad() -> None:
    G = random_rows(6, 5, seed=1)
    K = G @ G.T
    torch.testing.assert_close(GradVac(beta=0.0, seed=3)(K), PCGrad(seed=3)(K))


@pytest.mark.parametrize("scale", [1e-12, 1e-6, 1e6, 1e12])
def test_gradvac_does_not_see_the_scale(scale: float) -> None:
    first, second = GradVac(beta=0.5), GradVac(beta=0.5)
    for step in range(3):
        G = random_rows(5, 9, seed=step)
        K = G @ G.T
        torch.testing.assert_close(second(scale**2 * K), first(K), rtol=1e-9, atol=0)


def test_gradvac_is_finite_where_cosines_are_one_or_missing() -> None:
    g = numbers(1.0, 2.0, 3.0)
    same = torch.stack([g, g * (1 + 1e-16), 0.1 * g])
    method = GradVac(beta=1.0)
    for _ in range(4):  # the targets become 1
        assert method(same @ same.T).isfinite().all()
    above = same @ same.T * (1 + 4e-16 * (1 - torch.eye(3)))  # cosines of 1 + ulp
    assert method(above).isfinite().all()
    assert (method.phi <= 1).all()
    other = random_rows(3, 4, seed=0)
    assert method(other @ other.T).isfinite().all()
    opposite = torch.stack([g, -g, torch.zeros(3)]).double()
    method = GradVac()
    assert (opposite.T @ method(opposite @ opposite.T)).abs().max() <= 1e-15
    assert (method.phi[2] == 0).all()
    assert (method.phi[:, 2] == 0).all()


def test_gradvac_keeps_its_targets_where_a_gradient_is_not_finite() -> None:
    G = random_rows(3, 5, seed=0)
    method = GradVac()
    method(G @ G.T)
    before = method.phi.clone()
    G[1, 0] = math.nan
    assert method(G @ G.T).isnan().all()
    assert torch.equal(method.phi, before)


# ------------------------------------------------------------------------------------ GradNorm


def test_gradnorm_follows_the_gradient_of_its_loss() -> None:
    method = GradNorm(alpha=1.5, lr=0.02)
    w, start = torch.ones(4, dtype=torch.float64), None
    for step in range(6):
        G = random_rows(4, 7, seed=step) * numbers(0.1, 1, 5, 20)[:, None]
        n, losses = G.norm(dim=1), random_rows(1, 4, seed=90 + step)[0].exp()
        start = losses if start is None else start
        torch.testing.assert_close(method(G @ G.T, losses), w, rtol=1e-12, atol=0)
        leaf = w.clone().requires_grad_()
        with torch.enable_grad():
            m = (w * n).mean()
            ratio = losses / start
            target = m * (ratio / ratio.mean()) ** 1.5
            ((leaf * n - target).abs().sum() / m).backward()
        w = (w - 0.02 * leaf.grad).clamp_min(0)
        w = 4 * w / w.sum()
    torch.testing.assert_close(method.weights, w, rtol=1e-12, atol=0)


@pytest.mark.parametrize("scale", [1e-12, 1e-6, 1e6, 1e12])
def test_gradnorm_does_not_see_the_scale(scale: float) -> None:
    first, second = GradNorm(), GradNorm()
    for step in range(5):
        G = random_rows(4, 7, seed=step) * numbers(0.1, 1, 5, 20)[:, None]
        losses = random_rows(1, 4, seed=90 + step)[0].exp()
        K = G @ G.T
        expected = first(K, losses)
        torch.testing.assert_close(second(scale**2 * K, losses), expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_gradnorm_waits_for_good_losses(bad: float) -> None:
    K = torch.diag(numbers(1.0, 4.0))
    method = GradNorm()
    torch.testing.assert_close(method(K, numbers(bad, 2.0)), numbers(1, 1))
    assert method.status.tolist() == [Status.INVALID_LOSS, 0]
    assert method.start.isnan().tolist() == [True, False]
    method(K, numbers(3.0, 1.0))
    assert method.start.tolist() == [3.0, 2.0]
    assert method.status.tolist() == [0, 0]
    assert not torch.equal(method.weights, numbers(1, 1))


def test_gradnorm_edge_cases() -> None:
    zero = GradNorm()
    torch.testing.assert_close(
        zero(torch.diag(numbers(1, 0, 4)), numbers(1, 1, 1)), numbers(1, 0, 1)
    )
    assert zero.status.tolist() == [0, Status.ZERO_GRADIENT, 0]
    one = GradNorm()
    for _ in range(3):
        torch.testing.assert_close(one(numbers(9.0)[:, None], numbers(2.0)), numbers(1))
    broken = GradNorm()
    assert broken(torch.diag(numbers(1, math.inf)), numbers(1, 1)).isnan().all()
    assert torch.equal(broken.weights, numbers(1, 1))
    with pytest.raises(ValueError, match="needs the tasks' losses"):
        GradNorm()(torch.eye(2).double())


# ----------------------------------------------------------------------- CR-MOGM and RLW


def test_crmogm_averages_weights() -> None:
    method, plain = CRMOGM(MGDA(), alpha=0.8), MGDA()
    average = None
    for step in range(5):
        G = random_rows(4, 9, seed=step)
        w = plain(G @ G.T)
        average = w if average is None else 0.8 * average + 0.2 * w
        torch.testing.assert_close(method(G @ G.T), average, rtol=1e-12, atol=0)
    assert torch.equal(CRMOGM(MGDA(), alpha=0.0)(G @ G.T), w)


def test_crmogm_starts_from_initial_weights() -> None:
    """s_k = alpha^k s_0 + (1 - alpha) sum_j alpha^(k-j) w_j, and alpha = 1 stays at s_0."""
    start = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
    method, plain = CRMOGM(MGDA(), 0.8, start.tolist()), MGDA()
    frozen = CRMOGM(MGDA(), 1.0, initial_weights=start.tolist())
    expected = start
    for seed in range(4):
        G = random_rows(3, 6, seed=seed)
        expected = 0.8 * expected + 0.2 * plain(G @ G.T)
        torch.testing.assert_close(method(G @ G.T), expected, rtol=1e-14, atol=0)
        assert torch.equal(frozen(G @ G.T), start)


def test_crmogm_keeps_its_start_where_the_first_step_is_not_finite() -> None:
    method = CRMOGM(MGDA(), 0.8, [0.25, 0.75])
    assert method(torch.full((2, 2), torch.nan).double()).isnan().all()
    K = torch.eye(2, dtype=torch.float64)
    expected = torch.tensor([0.3, 0.7], dtype=torch.float64)
    torch.testing.assert_close(method(K), expected)
    fresh = CRMOGM(MGDA(), 0.8, [0.5, 0.5])
    fresh.load_state_dict(method.state_dict())
    assert torch.equal(fresh.average, method.average)


def test_crmogm_survives_a_step_that_is_not_finite() -> None:
    K = torch.diag(numbers(1, 2, 3))
    method = CRMOGM(MGDA())
    first = method(K)
    assert method(torch.diag(numbers(1, math.nan, 3))).isnan().all()
    assert method.status.tolist() == [0, Status.NON_FINITE, 0]
    torch.testing.assert_close(method(K), first)


def test_random_weights_are_a_softmax_of_normal_numbers() -> None:
    method = RandomWeights(seed=5)
    K = torch.zeros(3, 3, dtype=torch.float64)
    drawn = torch.stack([method(K) for _ in range(300)])
    torch.testing.assert_close(drawn.sum(dim=1), torch.ones(300).double())
    assert len({tuple(w) for w in drawn.tolist()}) == 300
    assert (drawn.mean(dim=0) - 1 / 3).abs().max() < 0.06  # four standard deviations
    x = ops.normal_numbers(torch.tensor(1), torch.tensor(2), 20000)
    assert abs(float(x.mean())) < 0.03
    assert abs(float(x.std()) - 1) < 0.03
    assert abs(float((x.abs() < 1).double().mean()) - 0.6827) < 0.015


# --------------------------------------------------------------------------------------- state


def test_state_goes_through_an_optimizer() -> None:
    def build() -> tuple[torch.nn.Linear, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 2)
        base = torch.optim.SGD(model.parameters(), lr=0.1)
        return model, mtlkernels.MTLOptimizer(base, GradVac(beta=0.5))

    def step(model, optimizer) -> Tensor:
        y = model(torch.ones(4, 3))
        return optimizer.backward([y.square().mean(), (y - 3).square().mean()]).weights

    model, optimizer = build()
    step(model, optimizer)
    again, other = build()
    other.load_state_dict(optimizer.state_dict())
    assert torch.equal(step(again, other), step(model, optimizer))


# ---------------------------------------------------------------------------- both ways, words


@pytest.mark.parametrize("T", [1, 2, 5, 24])
def test_native_and_reference_agree(T: int) -> None:
    G = random_rows(T, 30, seed=T)
    G[T // 2] *= 0 if T > 2 else 1
    K = G @ G.T
    phi = 0.5 * torch.rand(T, T, generator=torch.Generator().manual_seed(T), dtype=torch.float64)
    losses, start = random_rows(2, T, seed=5).exp()
    state = torch.ones(T, dtype=torch.float64)
    seed = torch.tensor(-7)
    for corrected in (False, True):
        numbers_of_vac = (K, orders(T, 3), phi, 0.2, corrected)
        pairs = zip(ops.gradvac(*numbers_of_vac), reference.gradvac(*numbers_of_vac), strict=True)
        for got, expected in pairs:
            torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)
    numbers_of_norm = (K, losses, state, start, 1.5, 0.1)
    pairs = zip(ops.gradnorm(*numbers_of_norm), reference.gradnorm(*numbers_of_norm), strict=True)
    for got, expected in pairs:
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(
        ops.normal_numbers(seed, seed, T), reference.normal_numbers(seed, seed, T)
    )


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: GradVac(beta=1.1), "beta=1.1"),
        (lambda: GradVac(update="never"), "update"),
        (lambda: GradNorm(alpha=-1), "alpha=-1"),
        (lambda: GradNorm(lr=0), "lr=0"),
        (lambda: CRMOGM(MGDA(), alpha=2), "alpha=2"),
        (lambda: CRMOGM("mgda"), "method is a str"),
        (lambda: CRMOGM(MGDA(), initial_weights=[]), "initial_weights="),
        (lambda: CRMOGM(MGDA(), initial_weights=[1.0, float("inf")]), "initial_weights="),
        (
            lambda: CRMOGM(MGDA(), initial_weights=[1.0])(torch.eye(2).double()),
            "initial_weights has 1 numbers for 2 tasks",
        ),
    ],
)
def test_wrong_arguments_are_named(make, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        make()
