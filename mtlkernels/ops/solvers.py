"""The contract of the solvers: ops over the T x T Gram matrix, its status and one op a problem."""

from __future__ import annotations

import math
from enum import IntEnum

import torch
from torch import Tensor

from mtlkernels import reference
from mtlkernels.ops.draws import visiting_order
from mtlkernels.ops.registry import (
    LIBRARY,
    call,
    check_gram,
    define_plain,
    define_sized,
    define_solver,
    fake,
)

__all__ = [
    "AlignedScale",
    "EquiangularLength",
    "IMGradForm",
    "NormScale",
    "Rescale",
    "aligned",
    "avgnorm",
    "cagrad",
    "cagrad_preferred",
    "dualproj",
    "equiangular",
    "fairgrad",
    "gradnorm",
    "gradvac",
    "imgrad",
    "mgda",
    "onto_simplex",
    "pcgrad",
    "pcgrad_drawn",
    "simplex_descent",
    "task_status",
    "upgrad",
]

onto_simplex = reference.onto_simplex  # a few torch ops on T numbers: differentiable, no kernel

_task_status = define_sized("task_status", "(Tensor gram) -> Tensor")
_pcgrad = define_solver("pcgrad", ", Tensor order, bool mean")
_pcgrad_drawn = define_sized(
    "pcgrad_drawn", "(Tensor gram, Tensor seed, Tensor(a!) step, bool mean) -> (Tensor, Tensor)"
)
_gradvac = define_solver(
    "gradvac", ", Tensor order, Tensor phi, float beta, bool corrected", next_of=["phi"]
)
_cagrad = define_solver("cagrad", ", float c, int rescale, bool sum")
_imgrad = define_solver("imgrad", ", float c, int form, int rescale")
_mgda = define_solver("mgda", "")
_dualproj = define_solver("dualproj", ", Tensor preference")
_upgrad = define_solver("upgrad", ", Tensor preference")
_avgnorm = define_solver("avgnorm", ", int scale, float constant")
_gradnorm = define_solver(
    "gradnorm",
    ", Tensor losses, Tensor state, Tensor start, float alpha, float rate",
    next_of=["state", "start"],
)
_fairgrad = define_solver("fairgrad", ", float alpha, Tensor? importance, float max_norm")
_equiangular = define_solver("equiangular", ", int length")
_aligned = define_solver("aligned", ", Tensor? preference, int scale, bool mean")
_simplex_descent = define_solver(
    "simplex_descent",
    ", Tensor state, int rounds, float rate, float momentum, float pull, float damping,"
    " bool relative",
    next_of=["state"],
)


def task_status(gram: Tensor) -> Tensor:
    """What K says of each task's gradient: (T) int64 flags, see `mtlkernels.Status`.

    Raises:
        RuntimeError: as every solver on the CPU, where K_tt < 0, or K_tj and K_jt differ by more
            than 1e-6 of their size; on a device these are INVALID_GRAM.
    """
    return _task_status(len(gram), gram)


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


def gradvac(
    gram: Tensor, order: Tensor, phi: Tensor, beta: float, corrected: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """GradVac's weights (arXiv 2010.05874), exact, from K alone. Degree 0.

    Args:
        gram: (T, T) float64.
        order: (T, T-1) int64, row i the other tasks as task i visits them.
        phi: (T, T) float64, the target cosines.
        beta: how far a target moves towards the cosine met, in 0 .. 1.
        corrected: move the targets of corrected pairs only.

    Returns:
        weights (T) float64, status (T) int64 and the next step's targets (T, T).
    """
    return _gradvac(gram, order, phi, beta, corrected)


class Rescale(IntEnum):
    """What CAGrad's direction is divided by."""

    NONE = 0  # nothing: the paper's algorithm
    SQUARE = 1  # 1 + c^2
    LINEAR = 2  # 1 + c


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


_cagrad_preferred = define_plain(
    "cagrad_preferred",
    "(Tensor gram, Tensor shares, float c, int rescale, bool clip) -> (Tensor, Tensor)",
)


def cagrad_preferred(
    gram: Tensor, shares: Tensor, c: float, rescale: int = Rescale.NONE, clip: bool = False
) -> tuple[Tensor, Tensor]:
    """`cagrad` about a weighted mean of the gradients, with RACO's clip (arXiv 2602.02495).

    Only plain torch solves it: on a device it reads K back. Degree 0 in the gradients' scale.

    Args:
        gram: (T, T) float64.
        shares: (T) float64, at least 0 with sum 1, in place of 1 / T.
        c, rescale: as for `cagrad`.
        clip: replace the weights of the pull by min(w, shares), at the same length.

    Returns:
        weights (T) float64 and status (T) int64.
    """
    return call(_cagrad_preferred, gram, shares, c, rescale, clip)


def _preferred_shapes(gram: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    check_gram(gram)
    return gram.new_empty(len(gram)), gram.new_empty(len(gram), dtype=torch.int64)


torch.library.register_fake("mtlkernels::plain_cagrad_preferred", _preferred_shapes, lib=LIBRARY)


class IMGradForm(IntEnum):
    """Which of IMGrad's two published problems is solved."""

    PAPER = 0  # with ||g_w||^2; not homogeneous in the gradients
    CODE = 1  # with ||g_w|| and 1.5 in place of 1


def imgrad(gram: Tensor, c: float, form: int, rescale: int = Rescale.NONE) -> tuple[Tensor, Tensor]:
    """IMGrad's weights (arXiv 2503.08006), exact. Degree 0 in the code's form.

    Args:
        gram: (T, T) float64.
        c: radius of the ball about the mean gradient, as a share of its norm; at least 0.
        form: see `IMGradForm`.
        rescale: see `Rescale`.

    Returns:
        weights (T) float64 and status (T) int64.
    """
    return _imgrad(gram, c, form, rescale)


def mgda(gram: Tensor) -> tuple[Tensor, Tensor]:
    """MGDA's weights (arXiv 1810.04650): argmin over the simplex of w^T K w. Degree 0.

    Args:
        gram: (T, T) float64.

    Returns:
        weights (T) float64, which sum to 1, and status (T) int64.
    """
    return _mgda(gram)


def dualproj(gram: Tensor, preference: Tensor) -> tuple[Tensor, Tensor]:
    """DualProj's weights (arXiv 2406.16232): the mean, projected onto {d : G d >= 0}. Degree 0.

    Args:
        gram: (T, T) float64.
        preference: (T) float64, at least 0, each task's part in the mean; of zero elements for
            equal parts of the tasks that take part.

    Returns:
        weights (T) float64 and status (T) int64.
    """
    return _dualproj(gram, preference)


def upgrad(gram: Tensor, preference: Tensor) -> tuple[Tensor, Tensor]:
    """UPGrad's weights (arXiv 2406.16232): each gradient projected, then the mean. Degree 0.

    Args and returns as `dualproj`.
    """
    return _upgrad(gram, preference)


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


def gradnorm(
    gram: Tensor, losses: Tensor, state: Tensor, start: Tensor, alpha: float, rate: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """GradNorm's weights (arXiv 1711.02257) from T norms and T losses. Degree 0.

    Args:
        gram: (T, T) float64.
        losses: (T) float64.
        state: (T) float64, the weights, which sum to T.
        start: (T) float64, each task's first loss, NaN before there is one.
        alpha: strength of the pull towards equal training rates.
        rate: step of the weights.

    Returns:
        weights (T) float64 of this step, status (T) int64, and the next step's state and start.
    """
    return _gradnorm(gram, losses, state, start, alpha, rate)


def fairgrad(
    gram: Tensor, alpha: float, importance: Tensor | None = None, max_norm: float = math.inf
) -> tuple[Tensor, Tensor]:
    """The w > 0 with (K w)_i = (p_i / w_i)^(1/alpha), by Newton's method.

    NashMTL (arXiv 2202.01017) is alpha = 1, FairGrad (arXiv 2402.15638) any alpha, PIVRG alpha = 2
    with its own p. Degree -2 alpha / (1 + alpha) in the gradients' scale.

    Args:
        gram: (T, T) float64.
        alpha: above 0.
        importance: (T) float64, p > 0; None for ones. Where one is not positive and finite, all
            weights are NaN.
        max_norm: a direction that is longer is shortened to this.

    Returns:
        weights (T) float64 and status (T) int64. NO_SOLUTION where zero lies in the convex hull of
        the gradients: the weights then solve the equations of K with its diagonal times 1 + 1e-6.
        ILL_CONDITIONED where rounding noise of K may move the direction by more than 1e-4, or
        Newton's method reaches its bound on work: then the diagonal is multiplied by 1 + 2.3e-13.
    """
    return _fairgrad(gram, alpha, importance, max_norm)


class EquiangularLength(IntEnum):
    """The length of the direction that makes the same angle with every gradient."""

    PROJECTIONS = 0  # the sum of the gradients' projections on it: ConFIG
    UNIT_SUM = 1  # sum w = 1, or sum |w| = 1 where sum w is not positive: IMTL-G


def equiangular(gram: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """The direction along sum_i y_i g_i / ||g_i||, y = C^+ 1 with C the cosines. Degree 0.

    ConFIG (arXiv 2408.11104) and IMTL-G (ICLR 2021) share it.

    Args:
        gram: (T, T) float64.
        length: see `EquiangularLength`.

    Returns:
        weights (T) float64 and status (T) int64. STATIONARY where the unit gradients add up to
        zero: the weights are then 0.
    """
    return _equiangular(gram, length)


class AlignedScale(IntEnum):
    """The singular value that Aligned-MTL gives all principal components."""

    MIN = 0  # the smallest
    MEDIAN = 1  # the median, of an even number the lower of the middle two
    RMSE = 2  # the root of the mean eigenvalue of K


def aligned(
    gram: Tensor,
    preference: Tensor | None = None,
    scale: int = AlignedScale.MIN,
    mean: bool = False,
) -> tuple[Tensor, Tensor]:
    """Aligned-MTL's weights (arXiv 2305.19000): s V Lambda^(-1/2) V^T p over K's rank. Degree 0.

    Args:
        gram: (T, T) float64.
        preference: (T) float64, p; None for ones.
        scale: which s, see `AlignedScale`.
        mean: divide by the sum of p over the tasks that take part.

    Returns:
        weights (T) float64 and status (T) int64.
    """
    return _aligned(gram, preference, scale, mean)


def simplex_descent(
    gram: Tensor,
    state: Tensor,
    rounds: int,
    rate: float,
    momentum: float,
    pull: float,
    damping: float,
    relative: bool,
    preference: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """SDMGrad's (arXiv 2305.18409) and MoDo's (arXiv 2305.20057) weights: projected descent.

    From v = 0, `rounds` times: v <- momentum v + A (w + pull / T) + damping w and
    w <- projection on the simplex of w - rate v. Degree 0 where `relative`.

    Args:
        gram: (T, T) float64, A: a Gram matrix, or the cross-Gram of two batches (`cross_gram`).
        state: (T) float64, w on the simplex.
        rounds, rate, momentum, pull, damping: as above.
        relative: take A in units of s^2, s the mean of the sqrt(max(A_ii, 0)).
        preference: (T) float64, at least 0, in place of 1 / T as a share of its sum. No kernel has
            it: it is a few torch ops on T x T numbers, which read nothing back.

    Returns:
        weights (T) float64, (w + pull / T) / (1 + pull); status (T) int64, and the next state (T).
    """
    numbers = (rounds, rate, momentum, pull, damping, relative)
    if preference is not None:
        return reference.simplex_descent(gram, state, *numbers, preference)
    return _simplex_descent(gram, state, *numbers)


@fake("task_status")
def _(gram: Tensor) -> Tensor:
    reference.check_gram(gram)
    return gram.new_empty(gram.shape[0], dtype=torch.int64)


@fake("pcgrad_drawn")
def _(gram: Tensor, seed: Tensor, step: Tensor, mean: bool) -> tuple[Tensor, Tensor]:
    reference.check_gram(gram)
    return gram.new_empty(gram.shape[0]), gram.new_empty(gram.shape[0], dtype=torch.int64)
