"""`preference=`: how much each task matters, with one meaning in all methods that take it.

A preference is one number per task, at least 0 and not all 0, in the order of the losses or by
name. Only ratios count: a method uses the shares p_i / sum_j p_j where it has 1/T without a
preference, and T times these shares where it has 1. Equal numbers are no preference. In each step
the shares are over the tasks that take part.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mtlkernels.methods.numbers import Numbers, numbers_of
from mtlkernels.methods.tasks import KeepsTasks


def register_preference(method: KeepsTasks, preference: Numbers | None) -> None:
    """Adds the buffer `preference`: the given numbers, or no elements for None.

    Raises:
        ValueError: a number is negative or not finite, all are 0, or there is not one per task.
        TypeError: they are not real numbers.
    """
    if preference is None:
        empty = torch.empty(0, dtype=torch.float64)
        method.register_buffer("preference", empty, persistent=False)
        return
    given, names = numbers_of(preference)
    good = given.isfinite() & (given >= 0)
    if given.dim() != 1 or not good.all() or not given.any():
        raise ValueError(
            f"preference={preference}: give one finite number per task, at least 0 and not all 0"
        )
    method.register_given("preference", given, names)


def has_preference(method: KeepsTasks, device: torch.device) -> bool:
    """Whether one was given; its buffer follows to the device."""
    given = method.get_buffer("preference")
    if given.device != device:
        given = method.preference = given.to(device)
    return len(given) > 0


def preferred_shares(method: KeepsTasks, takes_part: Tensor) -> Tensor:
    """The shares of a step.

    Args:
        method: one of `register_preference`.
        takes_part: (T) bool, which tasks do.

    Returns:
        (T) float64, sum 1; 0 for the other tasks, and all 0 where no preferred task takes part.

    Raises:
        ValueError: the preference has numbers for another number of tasks.
    """
    numbers = torch.ones_like(takes_part, dtype=torch.float64)
    if has_preference(method, takes_part.device):
        numbers = method.get_buffer("preference")
    if len(numbers) != len(takes_part):
        raise ValueError(f"preference has {len(numbers)} numbers for {len(takes_part)} tasks")
    numbers = torch.where(takes_part, numbers, 0.0)
    total = numbers.sum()
    return numbers / torch.where(total > 0, total, 1.0)
