"""Random numbers from a counter: functions of a seed and a step, the same on every device."""

from __future__ import annotations

from torch import Tensor


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
