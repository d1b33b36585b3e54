"""Gradients that depend on each other, or nearly, drawn by kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

SIZE = 100  # numbers a gradient


class Problem(NamedTuple):
    """rows: (T, N) stored gradients. relation: where they are exact sums that storing rounded,
    the gradients that are summed and the coefficients (T, R), else None."""

    rows: Tensor
    relation: tuple[Tensor, list[list[float]]] | None = None


def _draws(seed: int) -> Callable[..., Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)


def _uniform(seed: int, low: float, high: float, count: int = 1) -> list[float]:
    generator = torch.Generator().manual_seed(seed + 10**6)
    return (low + (high - low) * torch.rand(count, generator=generator)).tolist()


def near(seed: int, dtype: torch.dtype) -> Problem:
    """Two gradients 1e-6 to 1e-2 apart, alone or beside others."""
    randn = _draws(seed)
    a = randn(SIZE).to(dtype)
    apart = 10 ** _uniform(seed, -6, -2)[0]
    rows = [a, a + apart * randn(SIZE).to(dtype)]
    rows += [randn(SIZE).to(dtype) for _ in range(seed % 3)]
    return Problem(torch.stack(rows))


def cancelling(seed: int, dtype: torch.dtype) -> Problem:
    """Two gradients that nearly cancel beside another."""
    a, h, k = (x.to(dtype) for x in _draws(seed)(3, SIZE))
    return Problem(torch.stack([a, 3e-4 * h - a, k]))


def sums(seed: int, dtype: torch.dtype) -> Problem:
    """Three positive gradients and sums of them."""
    generator = torch.Generator().manual_seed(seed)
    a, b, c = torch.rand(3, SIZE, generator=generator, dtype=torch.float64).to(dtype)
    coefficients = [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [0, 1, 1], [1, 1, 1]]
    rows = torch.stack([a, b, c, a + b, b + c, a + b + c])
    return Problem(rows, (torch.stack([a, b, c]), [[float(x) for x in r] for r in coefficients]))


def scaled(seed: int, dtype: torch.dtype) -> Problem:
    """A gradient, a multiple of it and another."""
    g, h = (x.to(dtype) for x in _draws(seed)(2, SIZE))
    rows = torch.stack([g, 1.7 * g, h])
    return Problem(rows, (torch.stack([g, h]), [[1, 0], [1.7, 0], [0, 1]]))


def duplicates(seed: int, dtype: torch.dtype) -> Problem:
    """A gradient and a multiple of it, by a factor of 1e-2 to 1e2, beside two others."""
    g, h, k = (x.to(dtype) for x in _draws(seed)(3, SIZE))
    factor = 10 ** _uniform(seed, -2, 2)[0]
    rows = torch.stack([g, factor * g, h, k])
    base = torch.stack([g, h, k])
    return Problem(rows, (base, [[1, 0, 0], [factor, 0, 0], [0, 1, 0], [0, 0, 1]]))


def wide(seed: int, dtype: torch.dtype) -> Problem:
    """More gradients than they have numbers."""
    size = 2 + seed % 3
    return Problem(_draws(seed)(size + 1 + seed % 4, size).to(dtype))


def plain(seed: int, dtype: torch.dtype) -> Problem:
    """Random gradients, of norms over two decades."""
    T = 2 + seed % 6
    scale = 10 ** torch.tensor(_uniform(seed, -1, 1, T), dtype=torch.float64)
    return Problem((_draws(seed)(T, SIZE) * scale[:, None]).to(dtype))


Kind = Callable[[int, torch.dtype], Problem]
KINDS: dict[str, Kind] = {
    "near": near,
    "cancelling": cancelling,
    "sums": sums,
    "scaled": scaled,
    "duplicates": duplicates,
    "wide": wide,
    "plain": plain,
}
