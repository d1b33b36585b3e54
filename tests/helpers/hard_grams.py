"""Gram matrices that solvers find hard."""

from __future__ import annotations

import math

import torch
from torch import Tensor

KINDS = (
    "random",
    "low-rank",
    "nearly-parallel",
    "conflicting",
    "badly-scaled",
    "conflicting-scaled",
)


def random_rows(T: int, n: int, seed: int) -> Tensor:
    return torch.randn(T, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def two_task_gram(a: float, b: float, cosine: float) -> Tensor:
    r = cosine * math.sqrt(a * b)
    return torch.tensor([[a, r], [r, b]], dtype=torch.float64)


def hard_gram(kind: str, T: int, seed: int) -> Tensor:
    """K of T gradients; norms spread over 1e8 where badly scaled."""
    G = random_rows(T, 100, seed)
    if kind == "low-rank":
        G = random_rows(T, max(2, T // 3), seed)
    elif kind == "nearly-parallel":
        G = G[:1] + 1e-4 * random_rows(T, 100, seed + 1)
    elif kind.startswith("conflicting"):
        G = G - 0.98 * G.mean(dim=0)
    if kind.endswith("scaled"):
        G = G * 10 ** (8 * torch.rand(T, 1, generator=torch.Generator().manual_seed(seed)) - 4)
    return G @ G.T
