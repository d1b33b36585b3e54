"""SDMGrad and MoDo: their iterations step by step, the projection, the products of two batches."""

from __future__ import annotations

import math

import pytest
import torch
from hard_grams import random_rows
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchjd.aggregation import MoDoWeighting, SDMGradWeighting

import mtlkernels
from mtlkernels import MoDo, Normalized, SDMGrad, Status, ops, reference

pytestmark = pytest.mark.usefixtures("one_thread")


def two_batches(T: int, seed: int, n: int = 30) -> tuple[Tensor, Tensor]:
    """Gradients of two batches with a common part, so that diagonals are mostly positive."""
    common = random_rows(T, n, seed)
    return common + random_rows(T, n, seed + 1), common + random_rows(T, n, seed + 2)


def nearest_on_simplex(x: Tensor) -> Tensor:
    """By bisection on the shift, to the last bit or so: no code and no idea in common."""
    low, high = x.min() - 2, x.max()
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if (x - middle).clamp_min(0).sum() > 1 else (low, middle)
    return (x - high).clamp_min(0)


# ----------------------------------------------------------------------------------- cross_gram


def test_cross_gram_is_the_product_of_two_batches() -> None:
    G, H = (torch.randn(3, 50, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    first = [piece for g in G for piece in (g[:20], g[20:])]
    second = [piece for h in H for piece in (h[:20], h[20:])]
    A = ops.cross_gram(first, second, 3)
    expected = G.double() @ H.double().T
    torch.testing.assert_close(A, expected, rtol=1e-6, atol=1e-5)
    assert A.is_contiguous()
    assert torch.equal(A, ops.cross_gram(second, first, 3).T)
    torch.testing.assert_close(ops.cross_gram(first, first, 3), ops.gram(first, 3))


def test_cross_gram_refuses_lists_of_two_lengths() -> None:
    one = torch.ones(2)
    with pytest.raises(ValueError, match="the lists hold 2 and 3 gradients"):
        ops.cross_gram([one] * 2, [one] * 3, 1)
    with pytest.raises(ValueError, match="empty"):
        ops.cross_gram([], [], 1)


def test_cross_gram_reaches_back() -> None:
    a, b = (torch.randn(4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(lambda a, b: ops.cross_gram([a, 2 * a], [b, b * b], 2), (a, b))


# ----------------------------------------------------------------------------------- iterations


@given(T=st.integers(1, 12), seed=st.integers(0, 10**6), rate=st.sampled_from([1e-3, 1.0, 1e8]))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_projection_is_the_nearest_point(T: int, seed: int, rate: float) -> None:
    """One step with A = -diag(c) from the uniform w goes to the projection of any given point."""
    x = random_rows(1, T, seed)[0]
    A = -torch.diag(T * x) + 1e-300
    even = torch.full((T,), 1 / T, dtype=torch.float64)
    w, _, following = ops.simplex_descent(A, even, 1, rate, 0.0, 0.0, 0.0, False)
    torch.testing.assert_close(w, nearest_on_simplex(even + rate * x), rtol=0, atol=1e-12)
    torch.testing.assert_close(following, w, rtol=1e-14, atol=0)
    assert w.min() >= 0
    assert math.isclose(float(w.sum()), 1, rel_tol=1e-14)


@pytest.mark.parametrize("T", [1, 2, 5, 12])
@pytest.mark.parametrize(("lr", "tolerance"), [(0.3, 1e-12), (10.0, 1e-5)])
def test_sdmgrad_is_the_published_iteration(T: int, lr: float, tolerance: float) -> None:
    """Steps of the default lr overshoot, so that each round multiplies what rounding does."""
    method = SDMGrad(lr=lr)
    even = torch.full((T,), 1 / T, dtype=torch.float64)
    w = even
    for step in range(4):
        G, H = two_batches(T, seed=10 * step)
        A = G @ H.T
        scaled = A / A.diagonal().clamp_min(0).sqrt().mean() ** 2
        velocity = torch.zeros_like(w)
        for _ in range(20):
            velocity = 0.5 * velocity + scaled @ w + 0.3 * scaled @ even
            w = nearest_on_simplex(w - lr * velocity)
        torch.testing.assert_close(method(A), (w + 0.3 * even) / 1.3, rtol=0, atol=tolerance)
        torch.testing.assert_close(method.w, w, rtol=0, atol=tolerance)


@pytest.mark.parametrize("T", [1, 2, 5, 12])
def test_a_preference_is_what_sdmgrad_pulls_to(T: int) -> None:
    """Step by step, with the numbers taken as shares; equal ones are no preference."""
    preference = [1.0, 0.0, 3.0, 2.0, 0.5, *[0.25] * 7][:T]
    p = torch.tensor(preference, dtype=torch.float64) / sum(preference)
    method = SDMGrad(lr=0.3, preference=preference)
    equal, plain = SDMGrad(lr=0.3, preference=[7.0] * T), SDMGrad(lr=0.3)
    w = torch.full((T,), 1 / T, dtype=torch.float64)
    for step in range(4):
        G, H = two_batches(T, seed=10 * step)
        A = G @ H.T
        scaled = A / A.diagonal().clamp_min(0).sqrt().mean() ** 2
        velocity = torch.zeros_like(w)
        for _ in range(20):
            velocity = 0.5 * velocity + scaled @ w + 0.3 * scaled @ p
            w = nearest_on_simplex(w - 0.3 * velocity)
        torch.testing.assert_close(method(A), (w + 0.3 * p) / 1.3, rtol=0, atol=1e-12)
        torch.testing.assert_close(method.w, w, rtol=0, atol=1e-12)
        torch.testing.assert_close(equal(A), plain(A), rtol=0, atol=1e-12)


def test_the_minimiser_under_a_preference() -> None:
    """1/2 w^T K w + lam w^T K p is lowest on the simplex: K (w + lam p) is lowest where w > 0."""
    K = (lambda G: G @ G.T)(random_rows(5, 7, seed=3))
    p = torch.tensor([0.1, 0.2, 0.0, 0.4, 0.3], dtype=torch.float64)
    method = SDMGrad(2.0, lr=0.02, iterations=8000, preference=p.tolist())
    weights = method(K)
    slope = K @ (method.w + 2 * p)
    assert (method.w @ slope - slope).max() <= 1e-9 * K.diagonal().max()
    torch.testing.assert_close(weights, (method.w + 2 * p) / 3)
    assert torch.equal(method.status, torch.zeros(5, dtype=torch.int64))


def test_a_strong_preference_is_the_direction() -> None:
    K = (lambda G: G @ G.T)(random_rows(3, 7, seed=3))
    expected = torch.tensor([0.25, 0.75, 0.0], dtype=torch.float64)
    method = SDMGrad(1e9, lr=1e-9, preference=[1.0, 3.0, 0.0])
    torch.testing.assert_close(method(K), expected, rtol=0, atol=1e-8)


def test_a_task_without_a_gradient_has_no_part_in_the_preference() -> None:
    K = (lambda G: G @ G.T)(random_rows(3, 7, seed=3))
    padded = torch.zeros(4, 4, dtype=torch.float64)
    padded[:3, :3] = K
    three = SDMGrad(lr=0.1, preference=[1.0, 2.0, 0.0])(K)
    four = SDMGrad(lr=0.1, preference=[1.0, 2.0, 0.0, 5.0])(padded)
    torch.testing.assert_close(four[:3], three, rtol=1e-9, atol=1e-9)
    assert four[3] == 0


@pytest.mark.parametrize("T", [1, 2, 5, 12])
def test_modo_is_one_projected_step(T: int) -> None:
    method = MoDo(gamma=0.01, rho=0.3)
    w = torch.full((T,), 1 / T, dtype=torch.float64)
    for step in range(5):
        G, H = two_batches(T, seed=10 * step)
        w = nearest_on_simplex(w - 0.01 * (G @ H.T @ w + 0.3 * w))
        torch.testing.assert_close(method(G @ H.T), w, rtol=0, atol=1e-12)


@pytest.mark.parametrize("T", [2, 5, 9])
def test_like_torchjd(T: int) -> None:
    """An independent implementation; its SDMGrad adds 1e-8 to the unit, ours nothing."""
    pairs = [
        (SDMGrad(), SDMGradWeighting()),
        (SDMGrad(0.6, lr=1.0, momentum=0.0, iterations=7), SDMGradWeighting(1.0, 0.0, 7, 0.6)),
        (MoDo(), MoDoWeighting()),
        (MoDo(1e-3, 0.0), MoDoWeighting(1e-3, 0.0)),
        (
            SDMGrad(preference=[*range(1, T + 1)]),
            SDMGradWeighting(pref_vector=torch.arange(1.0, T + 1).double() * 2 / T / (T + 1)),
        ),
    ]
    for ours, theirs in pairs:
        for step in range(3):
            G, H = two_batches(T, seed=7 * step)
            torch.testing.assert_close(ours(G @ H.T), theirs(G @ H.T), rtol=0, atol=1e-7)


def test_small_steps_of_sdmgrad_reach_the_minimiser() -> None:
    """On a Gram matrix the fixed point is the optimum: (K (w + lam / T)) is lowest where w > 0."""
    K = (lambda G: G @ G.T)(random_rows(5, 7, seed=3))
    method = SDMGrad(lr=0.05, iterations=5000)
    method(K)
    slope = K @ (method.w + 0.3 / 5)
    assert (method.w @ slope - slope).max() <= 1e-9 * K.diagonal().max()


@pytest.mark.parametrize("scale", [1e-12, 1e-3, 1e3, 1e12])
def test_scale(scale: float) -> None:
    first, second, unit, again = SDMGrad(), SDMGrad(), Normalized(MoDo()), Normalized(MoDo())
    for step in range(3):
        G, H = two_batches(5, seed=step)
        A, K = G @ H.T, G @ G.T
        torch.testing.assert_close(second(scale**2 * A), first(A), rtol=0, atol=1e-9)
        torch.testing.assert_close(again(scale**2 * K) * scale, unit(K), rtol=1e-9, atol=0)


# ----------------------------------------------------------------------------------- edge cases


@pytest.mark.parametrize("make", [SDMGrad, lambda: MoDo(gamma=0.01)], ids=["SDMGrad", "MoDo"])
def test_a_zero_gradient_takes_no_part_and_keeps_its_share(make) -> None:
    method, others = make(), make()
    G, H = two_batches(4, seed=5)
    G[1] = H[1] = 0
    rest = [0, 2, 3]
    A = G @ H.T
    weights = method(A)
    torch.testing.assert_close(weights[rest], others(A[rest][:, rest]), rtol=0, atol=1e-12)
    assert weights[1] == 0
    assert method.w[1] == 0.25
    assert math.isclose(float(method.w.sum()), 1, rel_tol=1e-14)
    assert method.status.tolist() == [0, Status.ZERO_GRADIENT, 0, 0]


def test_a_negative_diagonal_is_an_answer_and_no_unit_leaves_w() -> None:
    A = torch.tensor([[-1.0, 2.0], [0.5, -3.0]], dtype=torch.float64)
    method = SDMGrad()
    assert method(A).tolist() == [0.5, 0.5]
    assert method.status.tolist() == [0, 0]
    moved = MoDo()(A)
    assert moved.isfinite().all()
    assert not torch.equal(moved, torch.full_like(moved, 0.5))


@pytest.mark.parametrize("make", [SDMGrad, MoDo])
@pytest.mark.parametrize("batch", [0, 1])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_leaves_the_state(make, batch: int, bad: float) -> None:
    method = make()
    G, H = two_batches(3, seed=1)
    method(G @ H.T)
    before = method.w.clone()
    (G, H)[batch][1, 4] = bad
    assert method(G @ H.T).isnan().all()
    assert method.status.tolist() == [0, Status.NON_FINITE, 0]
    assert torch.equal(method.w, before)


@pytest.mark.parametrize("T", [1, 2, 7, 24])
@pytest.mark.parametrize("relative", [False, True])
def test_native_and_reference_agree(T: int, relative: bool) -> None:
    G, H = two_batches(T, seed=T)
    if T > 2:
        G[1] = H[1] = 0
    state = random_rows(1, T, seed=3)[0].softmax(dim=0)
    for A in (G @ H.T, G @ G.T, torch.full((T, T), math.nan).double(), 0 * G @ H.T):
        numbers = (A, state, 6, 0.3 if relative else 1e-3, 0.5, 0.3, 0.1, relative)
        for got, want in zip(
            ops.simplex_descent(*numbers), reference.simplex_descent(*numbers), strict=True
        ):
            torch.testing.assert_close(got, want, rtol=0, atol=1e-9, equal_nan=True)


def test_three_batches_through_the_ops() -> None:
    """The whole step as the docstring tells it."""
    G, H = (rows.float() for rows in two_batches(3, seed=9))
    third = random_rows(3, 30, seed=20).float()
    method = SDMGrad()
    weights = method(ops.cross_gram(list(G), list(H), 3))
    flat = ops.combine(list(third), weights)
    expected = weights @ third.double()
    torch.testing.assert_close(flat[:30].double(), expected, rtol=1e-5, atol=1e-5)
    direction, report = mtlkernels.aggregate([[g] for g in G], SDMGrad())
    assert direction[0].isfinite().all()
    assert math.isclose(float(report.weights.sum()), 1, rel_tol=1e-12)


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: SDMGrad(-0.1), "lam=-0.1"),
        (lambda: SDMGrad(lr=0), "lr=0"),
        (lambda: SDMGrad(momentum=1.0), "momentum=1.0"),
        (lambda: SDMGrad(iterations=0), "iterations=0"),
        (lambda: SDMGrad(preference=[0.0, 0.0]), "preference="),
        (lambda: SDMGrad(preference=[1.0, -1.0]), "preference="),
        (lambda: SDMGrad(preference=[1.0, float("nan")]), "preference="),
        (lambda: SDMGrad(preference=[1.0])(torch.eye(2).double()), "1 numbers for 2 tasks"),
        (lambda: MoDo(gamma=math.inf), "gamma=inf"),
        (lambda: MoDo(rho=-1), "rho=-1"),
    ],
)
def test_wrong_arguments_are_named(make, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        make()


def test_a_state_that_does_not_fit_is_told() -> None:
    K = torch.eye(3, dtype=torch.float64)
    for op in (ops.simplex_descent, reference.simplex_descent):
        with pytest.raises(RuntimeError, match="state must be a contiguous float64 vector of 3"):
            op(K, torch.ones(2, dtype=torch.float64), 1, 1.0, 0.0, 0.0, 0.0, False)
