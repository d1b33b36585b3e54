"""Ops over the T x T Gram matrix: its status, and one solver a problem."""

from __future__ import annotations

from enum import IntEnum

import torch
from torch import Tensor

from mtlkernels import reference
from mtlkernels.ops.registry import define_sized, define_solver, fake

_task_status = define_sized("task_status", "(Tensor gram) -> Tensor")
_visiting_order = define_sized(
    "visiting_order", "(Tensor seed, Tensor step, int num_tasks) -> Tensor"
)


def task_status(gram: Tensor) -> Tensor:
    """What K says of each task's gradient: (T) int64 flags, see `mtlkernels.Status`.

    Raises:
        RuntimeError: as every solver on the CPU, where K_tt < 0, or K_tj and K_jt differ by more
            than 1e-6 of their size; on a device these are INVALID_GRAM.
    """
    return _task_status(len(gram), gram)


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


_pcgrad = define_solver("pcgrad", ", Tensor order, bool mean")


def pcgrad(gram: Tensor, order: Tensor, mean: bool = False) -> tuple[Tensor, Tensor]:
    """PCGrad's weights (arXiv 2001.06782), exact, from K alone. Degree 0 in the gradients' scale.

    Args:
        gram: (T, T) float64.
        order: (T, T-1) int64, row i the other tasks as task i visits them.
        mean: divide the sum of the projected gradients by the number of tasks that take part.

    Returns:
        weights (T) float64 and status (T) int64.
    """
    return _pcgrad(gram, order, mean)


_pcgrad_drawn = define_sized(
    "pcgrad_drawn", "(Tensor gram, Tensor seed, Tensor(a!) step, bool mean) -> (Tensor, Tensor)"
)


def pcgrad_drawn(
    gram: Tensor, seed: Tensor, step: Tensor, mean: bool = False
) -> tuple[Tensor, Tensor]:
    """`pcgrad` in the order that `visiting_order(seed, step, T)` draws; then step <- step + 1.

    Draw, solve and count in one call, and on a GPU in one launch.

    Args:
        gram: (T, T) float64.
        seed, step: int64 scalars on gram's device.
        mean: as for `pcgrad`.

    Returns:
        weights (T) float64 and status (T) int64.
    """
    if gram.requires_grad and torch.is_grad_enabled():  # an op that writes has no formula
        order = visiting_order(seed, step, len(gram))
        step.add_(1)
        return pcgrad(gram, order, mean)
    return _pcgrad_drawn(len(gram), gram, seed, step, mean)


class Rescale(IntEnum):
    """What CAGrad's direction is divided by."""

    NONE = 0  # nothing: the paper's algorithm
    SQUARE = 1  # 1 + c^2
    LINEAR = 2  # 1 + c


_cagrad = define_solver("cagrad", ", float c, int rescale, bool sum")


def cagrad(
    gram: Tensor,
    c: float,
    rescale: int = Rescale.NONE,
    sum: bool = False,
) -> tuple[Tensor, Tensor]:
    """CAGrad's weights (arXiv 2110.14048), exact. Degree 0 in the gradients' scale.

    Args:
        gram: (T, T) float64.
        c: radius of the ball about the mean gradient, as a share of its norm; at least 0.
        rescale: see `Rescale`.
        sum: multiply by the number of tasks that take part.

    Returns:
        weights (T) float64 and status (T) int64.
    """
    return _cagrad(gram, c, rescale, sum)


class NormScale(IntEnum):
    """The length S of AvgNorm's direction per unit gradient."""

    SUM = 0  # norm of the sum of the gradients
    MAX = 1  # largest norm
    MEAN = 2  # mean norm
    RMS = 3  # root mean square of the norms
    MEDIAN = 4  # median norm; of an even number the mean of the middle two
    MIN = 5  # smallest norm
    CONSTANT = 6  # a given number
    HARMONIC = 7  # harmonic mean of the norms


_avgnorm = define_solver("avgnorm", ", int scale, float constant")


def avgnorm(gram: Tensor, scale: int, constant: float = 1.0) -> tuple[Tensor, Tensor]:
    """Norm scaling (arXiv 2509.23915): w_i = S / ||g_i|| over the tasks with a gradient.

    Degree 0 in the gradients' scale, -1 for a constant S.

    Args:
        gram: (T, T) float64.
        scale: which S, see `NormScale`.
        constant: S itself, where scale says so.

    Returns:
        weights (T) float64 and status (T) int64.
    """
    return _avgnorm(gram, scale, constant)


@fake("task_status")
def _(gram: Tensor) -> Tensor:
    reference.check_gram(gram)
    return gram.new_empty(gram.shape[0], dtype=torch.int64)


@fake("visiting_order")
def _(seed: Tensor, step: Tensor, num_tasks: int) -> Tensor:
    return seed.new_empty((num_tasks, num_tasks - 1))


@fake("pcgrad_drawn")
def _(gram: Tensor, seed: Tensor, step: Tensor, mean: bool) -> tuple[Tensor, Tensor]:
    reference.check_gram(gram)
    return gram.new_empty(gram.shape[0]), gram.new_empty(gram.shape[0], dtype=torch.int64)
