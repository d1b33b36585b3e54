"""Methods of physics-informed networks against their formulas, written down a second time."""

from __future__ import annotations

import math

import pytest
import torch
from hard_grams import random_rows
from loss_methods import batches, evaluate
from torch import Tensor, nn

import mtlkernels
from mtlkernels import (
    AvgNorm,
    NTKWeights,
    ReLoBRaLo,
    ResNorm,
    SoftAdapt,
    Status,
    ops,
)

pytestmark = pytest.mark.usefixtures("one_thread")

T = 3


def softmax(x: list[float]) -> list[float]:
    e = [math.exp(v) for v in x]
    return [v / sum(e) for v in e]


def close(weights: Tensor, want: list[float]) -> None:
    expected = torch.tensor(want, dtype=torch.float64)
    torch.testing.assert_close(weights, expected, rtol=1e-10, atol=0)


def relative(now: list[float], before: list[float], tau: float = 1.0) -> list[float]:
    ratios = [a / (tau * b) for a, b in zip(now, before, strict=True)]
    return [T * x for x in softmax(ratios)]


def test_softadapt_step_by_step() -> None:
    method = SoftAdapt()
    before: list[float] | None = None
    for losses in batches(T, 6):
        _, weights = evaluate(method, losses)
        now = losses.tolist()
        want = relative(now, before) if before else [1.0] * T
        close(weights, want)
        before = now


@pytest.mark.parametrize(("alpha", "beta", "tau"), [(0.95, 0.99, 1.0), (0.8, 0.5, 0.3)])
def test_relobralo_step_by_step(alpha: float, beta: float, tau: float) -> None:
    """PhysicsNeMo's loop, with the Bernoulli draws of our generator."""
    method = ReLoBRaLo(alpha, beta, tau, seed=4)
    average, first, last = [1.0] * T, [], []
    kept = []
    for step, losses in enumerate(batches(T, 40)):
        _, weights = evaluate(method, losses)
        now = losses.tolist()
        if step == 0:
            first = now
        else:
            drawn = float(ops.normal_numbers(torch.tensor(4), torch.tensor(step), 1))
            keep = 0.5 * (1 + math.erf(drawn / math.sqrt(2))) < beta
            kept.append(keep)
            prev = relative(now, last, tau)
            init = relative(now, first, tau)
            past = average if keep else init
            average = [alpha * p + (1 - alpha) * q for p, q in zip(past, prev, strict=True)]
        last = now
        close(weights, average)
    assert beta > 0.9 or 10 < sum(kept) < 30
    assert abs(float(weights.sum()) - T) < 1e-9


@pytest.mark.parametrize(("beta", "share"), [(0.0, 0.0), (1.0, 1.0), (0.3, 0.3)])
def test_relobralo_looks_back_as_often_as_asked(beta: float, share: float) -> None:
    method = ReLoBRaLo(1.0, beta)  # alpha = 1: the weights are the last ones, or those since step 0
    losses = torch.tensor([[1.0, 1.0], [2.0, 1.0]]).double()
    evaluate(method, losses[0])
    looked = 0
    for _ in range(400):
        before = method.weights.clone()
        method.weights.fill_(7.0)
        evaluate(method, losses[1])
        looked += method.weights[0] == 7.0
        assert before.isfinite().all()
    assert abs(int(looked) / 400 - share) < 0.08


@pytest.mark.parametrize("alpha", [0.0, 1.0, 0.5])
def test_resnorm_trains_as_physicsnemos_aggregator(alpha: float) -> None:
    method, base = ResNorm(T, alpha), torch.zeros(T).double().requires_grad_()
    ours, theirs = torch.optim.SGD(method.parameters(), lr=0.3), torch.optim.SGD([base], lr=0.3)
    method.double()
    start = None
    for losses in batches(T, 8) * torch.tensor([1e2, 1.0, 1e-2]):
        for optimizer in (ours, theirs):
            optimizer.zero_grad()
        leaf = losses.clone().requires_grad_()
        scalar = method(leaf)
        scalar.backward()
        start = losses if start is None else start
        with torch.no_grad():
            base += math.log(T) - base.logsumexp(0)
        e = base.exp()
        rate = losses / start
        want = (e * losses - losses.mean() * (rate / rate.mean()) ** alpha).abs().sum()
        want = want + (e.detach() * losses).sum()
        want.backward()
        torch.testing.assert_close(scalar.detach(), want.detach(), rtol=1e-6, atol=0)
        torch.testing.assert_close(leaf.grad, e.detach(), rtol=1e-6, atol=0)
        torch.testing.assert_close(method.s.grad.double(), base.grad, rtol=1e-5, atol=1e-6)
        ours.step()
        theirs.step()


def test_ntk_weights_are_those_of_the_roots_gradients() -> None:
    """k_i is the length of the gradient of sqrt |L_i|, by autograd."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, T)).double()
    params = list(net.parameters())
    y = net(torch.randn(16, 4).double())
    losses = [y[:, t].square().mean() * 10.0 ** (t - 1) for t in range(T)]
    losses[1] = -losses[1]
    k = []
    for loss in losses:
        grads = torch.autograd.grad(loss.abs().sqrt(), params, retain_graph=True)
        k.append(torch.cat([g.flatten() for g in grads]).norm())
    report = mtlkernels.backward(losses, params, NTKWeights())
    torch.testing.assert_close(report.weights, sum(k) / torch.stack(k), rtol=1e-10, atol=0)


def test_ntk_weights_leave_out_a_loss_of_zero() -> None:
    G = random_rows(4, 9, seed=1)
    losses = torch.tensor([1.0, 0.0, 3.0, -2.0]).double()
    method, others = NTKWeights(), [0, 2, 3]
    weights = method(G @ G.T, losses)
    assert weights[1] == 0
    assert method.status.tolist() == [0, Status.INVALID_LOSS, 0, 0]
    want = NTKWeights()(G[others] @ G[others].T, losses[others])
    torch.testing.assert_close(weights[others], want)
    assert NTKWeights()(G @ G.T, losses * torch.nan).isnan().all()
    with pytest.raises(ValueError, match="needs the tasks' losses"):
        NTKWeights()(G @ G.T)


def test_ntk_weights_every_few_steps() -> None:
    p = nn.Parameter(torch.ones(3))
    optimizer = mtlkernels.MTLOptimizer(torch.optim.SGD([p], lr=0.01), NTKWeights(), every=3)

    def step() -> Tensor:
        optimizer.zero_grad()
        report = optimizer.backward([(p * p).sum(), (p - 2).square().sum() + 1])
        optimizer.step()
        return report.weights

    first = step()
    assert torch.equal(step(), first)
    assert torch.equal(step(), first)
    assert not torch.equal(step(), first)


def test_avgnorm_averages_its_weights_as_jaxpi() -> None:
    method, average = AvgNorm("mean", ema=0.9), None
    for seed in range(5):
        G = random_rows(T, 20, seed) * torch.tensor([[1.0], [10.0], [0.1]]).double()
        n = G.norm(dim=1)
        new = n.mean() / n
        average = new if average is None else 0.9 * average + 0.1 * new
        torch.testing.assert_close(method(G @ G.T), average, rtol=1e-12, atol=0)
    G[1] = 0
    before = method.average.clone()
    weights = method(G @ G.T)
    assert weights[1] == 0
    assert method.average[1] == before[1]
    fresh = AvgNorm("mean", ema=0.9)
    fresh.load_state_dict(method.state_dict())
    G = random_rows(T, 20, 9)
    assert torch.equal(fresh(G @ G.T), method(G @ G.T))
    assert AvgNorm("mean").state_dict() == {}
    with pytest.raises(ValueError, match=r"ema=1\.0"):
        AvgNorm(ema=1.0)
    with pytest.raises(ValueError, match="3 tasks, not 2"):
        method(torch.eye(2).double())


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: ReLoBRaLo(1.5), "alpha=1.5"),
        (lambda: ReLoBRaLo(beta=-0.5), "beta=-0.5"),
        (lambda: ReLoBRaLo(tau=0.0), "tau=0.0"),
        (lambda: ResNorm(2, alpha=-1.0), "alpha=-1.0"),
        (lambda: ResNorm(0), "num_tasks=0"),
        (lambda: mtlkernels.COSMOS(-1.0), "lam=-1.0"),
        (lambda: mtlkernels.PBI(math.nan), "theta=nan"),
        (lambda: mtlkernels.Gated(-1), "threshold=-1"),
        (lambda: mtlkernels.Gated(1, gated=-1), "gated=-1"),
        (lambda: mtlkernels.PCD(2.0), "tau=2.0"),
        (lambda: mtlkernels.PCD(beta=1.0), "beta=1.0"),
        (lambda: mtlkernels.BLUR(math.inf), "gamma=inf"),
    ],
)
def test_wrong_arguments_are_named(make, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        make()


# ------------------------------------------------------------------------------------- Gated


def test_the_gate_closes_at_the_threshold() -> None:
    method = mtlkernels.Gated(2)
    losses = torch.tensor([3.0, 5.0]).double()
    for count, open_ in ((None, 1), (0, 1), (torch.tensor([1]), 1), (2, 0), (7, 0), (1, 1)):
        if count is not None:
            method.observe(count)
        scalar, weights = evaluate(method, losses)
        assert scalar == 3 + 5 * open_
        assert weights.tolist() == [1, open_]
    with pytest.raises(ValueError, match="2 elements"):
        method.observe(torch.ones(2))


def test_the_gated_loss_by_name() -> None:
    p = nn.Parameter(torch.ones(2))
    for order in (("online", "offline", "kl"), ("offline", "kl", "online")):
        method = mtlkernels.Gated(1, gated="offline")
        method.observe(1)
        losses = {name: p.sum() * (k + 1) for k, name in enumerate(order)}
        for _ in range(2):
            report = mtlkernels.backward(losses, [p], method, retain_graph=True)
            found = dict(zip(report.tasks, report.weights.tolist(), strict=True))
            assert found == {"online": 1, "offline": 0, "kl": 1}
    with pytest.raises(ValueError, match="gated='offline': the tasks are a, b"):
        mtlkernels.backward({"a": p.sum(), "b": p.sum()}, [p], mtlkernels.Gated(1, "offline"))
