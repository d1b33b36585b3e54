"""Methods that put one task before the others: OneSidedPCGrad, PCD, BLUR; CAGrad's preference."""

from __future__ import annotations

import itertools

import pytest
import torch
from hard_grams import KINDS, hard_gram, random_rows
from torch import Tensor
from torchjd import aggregation as peer

import mtlkernels
from mtlkernels import BLUR, CAGrad, OneSidedPCGrad, PCGrad, Status
from mtlkernels.methods import get_method

pytestmark = pytest.mark.usefixtures("one_thread")


def gradients(T: int, seed: int) -> Tensor:
    G = random_rows(T, 12, seed)
    return G - 0.7 * G.mean(dim=0)


# ------------------------------------------------------------------------------ OneSidedPCGrad


@pytest.mark.parametrize("primary", range(4))
def test_one_sided_pcgrad_is_what_its_formula_says(primary: int) -> None:
    for seed in range(10):
        G = gradients(4, seed)
        g = G[primary]
        d = g.clone()
        for j in range(4):
            if j != primary:
                d += G[j] - min(0.0, float(G[j] @ g)) / float(g @ g) * g
        got = G.T @ OneSidedPCGrad(primary)(G @ G.T)
        torch.testing.assert_close(got, d, rtol=1e-12, atol=1e-12)
        assert got @ g >= g @ g * (1 - 1e-12)


def test_one_sided_pcgrad_of_two_tasks_in_closed_form() -> None:
    G = torch.tensor([[1.0, 0.0], [-1.0, 1.0]]).double()
    assert OneSidedPCGrad()(G @ G.T).tolist() == [2.0, 1.0]
    assert OneSidedPCGrad(1)(G @ G.T).tolist() == [1.0, 1.5]
    assert (PCGrad()(G @ G.T) - torch.tensor([2.0, 1.5])).abs().max() < 1e-12


@pytest.mark.parametrize("make", [OneSidedPCGrad, mtlkernels.PCD])
def test_the_primary_task_by_name_in_any_order(make) -> None:
    G = dict(zip("abc", gradients(3, 5), strict=True))
    want = G["b"].new_zeros(12)
    for count, order in enumerate(itertools.permutations("abc")):
        method = make(primary="b")
        by_place = make(primary=order.index("b"))
        (d,), _ = mtlkernels.aggregate([[G[n]] for n in order], method, tasks=order)
        (e,), _ = mtlkernels.aggregate([[G[n]] for n in order], by_place)
        torch.testing.assert_close(d, e, rtol=1e-12, atol=1e-12)
        if count:
            torch.testing.assert_close(d, want, rtol=1e-12, atol=1e-12)
        want = d
        again = [[G[n]] for n in "cab"]
        if make is OneSidedPCGrad:
            (later,), _ = mtlkernels.aggregate(again, method, tasks="cab")
            torch.testing.assert_close(later, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("make", [OneSidedPCGrad, mtlkernels.PCD])
def test_a_step_without_some_tasks(make) -> None:
    p = torch.nn.Parameter(torch.zeros(12).double())
    G = dict(zip("abc", gradients(3, 6), strict=True))

    def step(method, present: str, names: str = "abc") -> Tensor:
        p.grad = None
        losses = {n: (p @ G[n] + 1 if n in present else None) for n in names}
        mtlkernels.backward(losses, [p], method)
        return p.grad

    method = make(primary="c")
    torch.testing.assert_close(step(method, "bc"), step(make(primary="c"), "bc", "bc"))
    torch.testing.assert_close(step(method, "ab"), G["a"] + G["b"])  # nothing is before another


@pytest.mark.parametrize("make", [OneSidedPCGrad, mtlkernels.PCD])
def test_a_primary_task_that_is_none_is_refused(make) -> None:
    rows = [[g] for g in gradients(3, 7)]
    with pytest.raises(ValueError, match="primary='x': the tasks are a, b, c"):
        mtlkernels.aggregate(rows, make(primary="x"), tasks="abc")
    with pytest.raises(ValueError, match="primary='x': the losses have no names"):
        mtlkernels.aggregate(rows, make(primary="x"))
    with pytest.raises(ValueError, match="primary=3: there are 3 tasks, counted from 0"):
        mtlkernels.aggregate(rows, make(primary=3))
    with pytest.raises(ValueError, match="primary=-1: give a name, or a position from 0 on"):
        make(primary=-1)


# ----------------------------------------------------------------------------------------- PCD


@pytest.mark.parametrize("T", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("tau", [0.0, 0.02, 0.5, 1.0])
def test_pcd_is_torchjds_over_steps(T: int, tau: float) -> None:
    """torchjd solves the same problem by Goldfarb and Idnani's method."""
    ours, theirs = mtlkernels.PCD(tau, beta=0.9), peer.PCD(tau, beta=0.9, eps=0.0)
    for seed in range(8):
        G = gradients(T, seed) * torch.logspace(-1, 1, T).double()[:, None]
        got, want = G.T @ ours(G @ G.T), theirs(G)
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-8 * float(G.norm()))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("T", [2, 5, 12])
def test_pcd_meets_its_conditions(kind: str, T: int) -> None:
    """Every constraint holds, and a multiplier is positive only where its constraint is active."""
    K = hard_gram(kind, T, seed=T)
    tau = 0.1
    method = mtlkernels.PCD(tau, beta=0.0)
    weights = method(K)
    if (method.status != 0).any():
        return
    norm = K.diagonal().sqrt()
    mu = weights * norm / (weights * norm)[0]  # d~ = g~_1 + sum_j mu_j g~_j
    C = K / norm / norm[:, None]
    slack = (C @ mu - tau)[1:]
    assert (mu >= 0).all()
    assert (slack >= -1e-7 * mu.abs().sum()).all()
    assert (mu[1:] * slack).abs().max() <= 1e-7 * mu.abs().sum() ** 2
    torch.testing.assert_close(weights @ K @ weights, K[0, 0], rtol=1e-9, atol=0)


def test_pcd_of_two_tasks_in_closed_form() -> None:
    for seed in range(10):
        a, b = gradients(2, seed)
        u, v = a / a.norm(), b / b.norm()
        d = u + max(0.0, 0.3 - float(u @ v)) * v
        got = torch.stack([a, b]).T @ mtlkernels.PCD(0.3)(
            torch.stack([a, b]) @ torch.stack([a, b]).T
        )
        torch.testing.assert_close(got, a.norm() * d / d.norm(), rtol=1e-10, atol=1e-12)


def test_pcd_without_a_solution_is_the_primary_gradient() -> None:
    G = torch.tensor([[1.0, 0.5], [0.0, 1.0], [0.0, -1.0]]).double()
    method = mtlkernels.PCD(0.1)
    assert method(G @ G.T).tolist() == [1.0, 0.0, 0.0]
    assert method.status.tolist() == [Status.NO_SOLUTION] * 3


def test_pcd_whose_secondary_task_wants_the_opposite() -> None:
    """Nothing is left of the primary direction but what the constraint asks."""
    G = torch.tensor([[2.0, 0.0], [-1.0, 0.0]]).double()
    torch.testing.assert_close(G.T @ mtlkernels.PCD(0.02)(G @ G.T), -G[0])
    zero = mtlkernels.PCD(0.0)
    assert zero(G @ G.T).tolist() == [0.0, 0.0]
    assert zero.status.tolist() == [Status.STATIONARY] * 2


def test_pcd_stops_where_the_primary_task_is_done() -> None:
    G = gradients(3, 1)
    G[0] = 0
    method = mtlkernels.PCD()
    assert method(G @ G.T).tolist() == [0.0] * 3
    assert method.status.tolist() == [Status.ZERO_GRADIENT, 0, 0]


def test_pcd_averages_where_the_gradients_are_finite() -> None:
    method = mtlkernels.PCD(beta=0.5)
    K = torch.diag(torch.tensor([4.0, 1.0])).double()
    method(K)
    method(K * torch.nan)
    assert method.average.tolist() == [2.0, 0.5]
    method(4 * K)
    assert method.average.tolist() == [9.0, 2.25]
    assert method.steps.tolist() == [2.0, 2.0]


# ---------------------------------------------------------------------------------------- BLUR


@pytest.mark.parametrize(("gamma", "alpha"), [(1.0, 1.0), (0.5, 2.0)])
def test_blur_is_what_its_formula_says(gamma: float, alpha: float) -> None:
    for seed in range(10):
        G = random_rows(2, 12, seed)
        retain, forget = G
        d = gamma * forget + alpha * (retain - (retain @ forget) / (forget @ forget) * forget)
        got = G.T @ BLUR(gamma, alpha)(G @ G.T)
        torch.testing.assert_close(got, d, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(got @ forget, gamma * (forget @ forget))


def test_blur_without_one_gradient() -> None:
    K = torch.diag(torch.tensor([4.0, 0.0])).double()
    assert BLUR(2.0, 3.0)(K).tolist() == [3.0, 0.0]
    assert BLUR(2.0, 3.0)(K.flip(0, 1)).tolist() == [0.0, 2.0]
    with pytest.raises(ValueError, match="two tasks, retain and forget, not 3"):
        BLUR()(torch.eye(3).double())


# ------------------------------------------------------------------- CAGrad with a preference


def ternary(f, low: float, high: float) -> float:
    for _ in range(200):
        a, b = low + (high - low) / 3, high - (high - low) / 3
        low, high = (a, high) if f(a) > f(b) else (low, b)
    return (low + high) / 2


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("share", [0.5, 0.8, 0.1])
def test_cagrad_of_two_tasks_with_a_preference(share: float, clip: bool) -> None:
    """RACO's formulas, with the dual solved by a search on the segment."""
    c = 0.4
    for seed in range(10):
        G = gradients(2, seed) + 0.1 * random_rows(2, 12, seed + 50)
        shares = torch.tensor([share, 1 - share]).double()
        g0 = shares @ G

        def dual(x: float, G: Tensor = G, g0: Tensor = g0) -> float:
            g = torch.tensor([x, 1 - x]).double() @ G
            return float(g @ g0 + c * g0.norm() * g.norm())

        x = ternary(dual, 0.0, 1.0)
        w = torch.tensor([x, 1 - x]).double()
        w = torch.minimum(w, shares) if clip else w
        want = g0 + c * g0.norm() * (w @ G) / (w @ G).norm()
        method = CAGrad(c, preference=(5 * shares).tolist(), clip=clip)
        got = G.T @ method(G @ G.T)
        assert method.status.tolist() == [0, 0]
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("T", [1, 3, 7])
def test_cagrads_plain_solver_is_the_native_one_without_a_preference(kind: str, T: int) -> None:
    K = hard_gram(kind, T, seed=T)
    for options in ({}, {"rescale": 1}, {"reduction": "sum"}):
        plain, equal = CAGrad(0.7, **options), CAGrad(0.7, preference=[2.0] * T, **options)
        want = plain(K)
        got = equal(K)
        assert torch.equal(plain.status, equal.status)
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-9 * float(want.abs().max()))


def test_a_preference_for_one_task_leaves_room_for_the_ball_alone() -> None:
    G = gradients(3, 4)
    method = CAGrad(0.3, preference=[0.0, 1.0, 0.0])
    d = G.T @ method(G @ G.T)
    assert (d - G[1]).norm() <= 0.3 * G[1].norm() * (1 + 1e-9)
    assert (G @ d).min() >= (G @ G[1]).min() - 1e-9


def test_by_name() -> None:
    assert isinstance(get_method("one-sided-pcgrad", primary=1), OneSidedPCGrad)
    assert get_method("blur", gamma=2.0).gamma == 2.0
