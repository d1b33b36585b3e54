"""Ops that draw random numbers: functions of a seed and a step, the same on every device."""

from __future__ import annotations

import torch
from torch import Tensor

from mtlkernels.ops.registry import LIBRARY, call, define, define_sized, fake

__all__ = ["normal_numbers", "visiting_order"]

_visiting_order = define_sized(
    "visiting_order", "(Tensor seed, Tensor step, int num_tasks) -> Tensor"
)
_normal_numbers = define("normal_numbers", "(Tensor seed, Tensor step, int n) -> Tensor")


def visiting_order(seed: Tensor, step: Tensor, num_tasks: int) -> Tensor:
    """PCGrad's random visiting order of one step.

    Args:
        seed, step: int64 scalars. The draw is a function of them alone: the same on every device
            and every rank.
        num_tasks: T.

    Returns:
        (T, T-1) int64: row i is a permutation of the other tasks.
    """
    return _visiting_order(num_tasks, seed, step, num_tasks)


def normal_numbers(seed: Tensor, step: Tensor, n: int) -> Tensor:
    """(n) float64 standard normal numbers, a function of the int64 scalars seed and step alone."""
    return call(_normal_numbers, seed, step, n)


@fake("visiting_order")
def _(seed: Tensor, step: Tensor, num_tasks: int) -> Tensor:
    return seed.new_empty((num_tasks, num_tasks - 1))


@torch.library.register_fake("mtlkernels::normal_numbers", lib=LIBRARY)
def _(seed: Tensor, step: Tensor, n: int) -> Tensor:
    return seed.new_empty(n, dtype=torch.float64)
