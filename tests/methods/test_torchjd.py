"""Likeness to torchjd, an independent implementation, where its own tolerances allow."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torchjd.aggregation import CAGrad as TorchjdCAGrad
from torchjd.aggregation import ExcessMTL as TorchjdExcessMTL
from torchjd.aggregation import GradDrop as TorchjdGradDrop
from torchjd.aggregation import PCGrad as TorchjdPCGrad
from torchjd.aggregation import TrimmedMean as TorchjdTrimmedMean
from torchjd.autojac import jac_to_grad, mtl_backward

import mtlkernels
from mtlkernels.reference import draws


def rows(T: int, n: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    G = torch.randn(T, n, dtype=torch.float64, generator=generator)
    return G - 0.7 * G.mean(dim=0)


@pytest.mark.parametrize("seed", range(20))
def test_pcgrad_of_two_tasks(seed: int) -> None:
    G = rows(2, 12, seed)
    got = G.T @ mtlkernels.PCGrad()(G @ G.T)
    torch.testing.assert_close(got, TorchjdPCGrad()(G), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("T", [2, 3, 5, 8])
@pytest.mark.parametrize("c", [0.2, 0.5, 0.9])
def test_cagrad(T: int, c: float) -> None:
    """torchjd hands the problem to a general conic solver, which agrees to a few times 1e-4."""
    for seed in range(5):
        G = rows(T, 12, seed)
        got = G.T @ mtlkernels.CAGrad(c=c)(G @ G.T)
        want = TorchjdCAGrad(c=c)(G)
        assert (got - want).norm() <= 2e-3 * want.norm()


def direction(method: mtlkernels.RowMethod, G: Tensor) -> Tensor:
    return mtlkernels.aggregate([[row] for row in G], method)[0][0]


@pytest.mark.parametrize("leak", [[0.0, 0.0, 0.0], [0.25, 1.0, 0.5]])
def test_graddrop_of_the_same_draws(leak: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """torchjd's uniform numbers are ours: U = (1 + tau) / 2, exact in float64."""
    for seed in range(5):
        G = rows(3, 200, seed)
        tau = draws.thresholds(0, 200, torch.tensor(seed), torch.tensor(0))
        monkeypatch.setattr(torch, "rand", lambda *_, tau=tau, **__: (1 + tau) / 2)
        want = TorchjdGradDrop(leak=torch.tensor(leak, dtype=torch.float64))(G)
        got = direction(mtlkernels.GradDrop(leak, seed=seed), G)
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("T", "trim"), [(1, 0), (3, 1), (5, 1), (8, 3), (9, 4)])
def test_trimmed_mean(T: int, trim: int) -> None:
    G = rows(T, 100, trim)
    got = direction(mtlkernels.TrimmedMean(trim), G)
    torch.testing.assert_close(got, TorchjdTrimmedMean(trim)(G), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("warmup", [1, 3])
def test_excess_mtl_after_its_warm_up(warmup: int) -> None:
    """torchjd adds 1e-7 to the first excess."""
    ours = mtlkernels.ExcessMTL(0.7, warmup=warmup, reduction="mean")
    theirs = TorchjdExcessMTL(0.7, n_warmup_steps=warmup)
    for step in range(6):
        G = rows(4, 30, step)
        torch.testing.assert_close(direction(ours, G), theirs(G), rtol=1e-6, atol=1e-7)


def test_a_whole_backward() -> None:
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))
    heads = [nn.Linear(4, 1) for _ in range(2)]
    x = torch.randn(16, 6)

    def losses() -> tuple[Tensor, list[Tensor]]:
        features = trunk(x)
        return features, [(h(features) - (-1) ** t).square().mean() for t, h in enumerate(heads)]

    params = [*trunk.parameters(), *(p for head in heads for p in head.parameters())]
    mtlkernels.backward(losses()[1], params, mtlkernels.PCGrad())
    got = [p.grad for p in params]
    for p in params:
        p.grad = None
    features, values = losses()
    mtl_backward(values, features=features)
    jac_to_grad(trunk.parameters(), TorchjdPCGrad())
    for have, param in zip(got, params, strict=True):
        torch.testing.assert_close(have, param.grad, rtol=1e-4, atol=1e-6)
