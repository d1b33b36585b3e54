"""Random numbers from a counter: functions of a seed and a step, the same on every device."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["normal_numbers", "visiting_order"]

_LOW = (1 << 32) - 1


def splitmix64(x: Tensor) -> Tensor:
    """The generator's successor and mix of int64 counters, as csrc/common/draws.h."""

    def shift(y: Tensor, bits: int) -> Tensor:  # logical: int64 would carry the sign along
        return (y >> bits) & ((1 << (64 - bits)) - 1)

    x = x - 0x61C8864680B583EB
    x = (x ^ shift(x, 30)) * -0x40A7B892E31B1A47
    x = (x ^ shift(x, 27)) * -0x6B2FB644ECCEEE15
    return x ^ shift(x, 31)


def stream(seed: Tensor, step: Tensor) -> Tensor:
    """Where the counter of one step's draws starts."""
    return splitmix64(splitmix64(seed) + step)


def visiting_order(seed: Tensor, step: Tensor, num_tasks: int) -> Tensor:
    """(T, T-1) int64: row i is a random permutation of the other tasks, drawn from (seed, step)."""
    if any(x.numel() != 1 or x.dtype != torch.int64 for x in (seed, step)):
        raise RuntimeError("seed and step must be int64 scalars")
    T = num_tasks
    index = torch.arange(T, device=seed.device)[:, None]
    place = torch.arange(T - 1, device=seed.device)[None, :]
    order = torch.where(place < index, place, place + 1).contiguous()
    draws = (splitmix64(stream(seed, step) + index * T + place) >> 1) & ((1 << 63) - 1)
    for p in range(T - 2, 0, -1):
        other = draws[:, p : p + 1] % (p + 1)
        kept, moved = order[:, p : p + 1].clone(), order.gather(1, other)
        order[:, p : p + 1] = moved
        order.scatter_(1, other, kept)
    return order


def normal_numbers(seed: Tensor, step: Tensor, n: int) -> Tensor:
    """(n) standard normal numbers, by the transform of Box and Muller, from (seed, step)."""
    if any(x.numel() != 1 or x.dtype != torch.int64 for x in (seed, step)):
        raise RuntimeError("seed and step must be int64 scalars")
    draws = splitmix64(stream(seed, step) + torch.arange(2 * n, device=seed.device))
    unit = ((draws >> 11) & ((1 << 53) - 1)).to(torch.float64)
    radius, angle = (unit[0::2] + 1) * 2.0**-53, unit[1::2] * 2.0**-53
    return (-2 * radius.log()).sqrt() * (2 * math.pi * angle).cos()


def philox(group: Tensor, step: Tensor, seed: Tensor) -> list[Tensor]:
    """Philox4x32-10 (Salmon et al., SC 2011) of the counters (group, step) under the key seed.

    Args:
        group: (n) int64. step, seed: int64 scalars.

    Returns:
        Four tensors (n) int64 of 32-bit words; words of group i are elements 4 i .. 4 i + 3.
    """

    def high(x: Tensor) -> Tensor:
        return (x >> 32) & _LOW

    c0, c1 = group & _LOW, high(group)
    c2, c3 = (step & _LOW).expand_as(c0), high(step).expand_as(c0)
    k0, k1 = seed & _LOW, high(seed)
    for _ in range(10):
        a, b = 0xD2511F53 * c0, 0xCD9E8D57 * c2  # modulo 2^64: int64 wraps, and its bits are right
        c0, c1, c2, c3 = high(b) ^ c1 ^ k0, b & _LOW, high(a) ^ c3 ^ k1, a & _LOW
        k0, k1 = (k0 + 0x9E3779B9) & _LOW, (k1 + 0xBB67AE85) & _LOW
    return [c0, c1, c2, c3]


def thresholds(start: int, n: int, seed: Tensor, step: Tensor) -> Tensor:
    """(n) float64 draws in (-1, 1), odd multiples of 2^-24, for flat places start .. start + n.

    start is a multiple of 4.
    """
    groups = torch.arange(start // 4, start // 4 + -(-n // 4), device=seed.device)
    words = torch.stack(philox(groups, step, seed), dim=1).reshape(-1)[:n]
    return (2 * (words >> 8) + 1 - (1 << 24)).to(torch.float64) * 2.0**-24
