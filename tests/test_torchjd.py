"""Likeness to torchjd, an independent implementation, where its own tolerances allow."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torchjd.aggregation import CAGrad as TorchjdCAGrad
from torchjd.aggregation import PCGrad as TorchjdPCGrad
from torchjd.autojac import jac_to_grad, mtl_backward

import mtlkernels


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
