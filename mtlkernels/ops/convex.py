"""Ops for MGDA, IMGrad, DualProj and UPGrad: small convex problems, solved exactly."""

from __future__ import annotations

from enum import IntEnum

from torch import Tensor

from mtlkernels.ops.registry import define_solver
from mtlkernels.ops.solvers import Rescale

_mgda = define_solver("mgda", "")
_imgrad = define_solver("imgrad", ", float c, int form, int rescale")
_dualproj = define_solver("dualproj", ", Tensor preference")
_upgrad = define_solver("upgrad", ", Tensor preference")


def mgda(gram: Tensor) -> tuple[Tensor, Tensor]:
    """MGDA's weights (arXiv 1810.04650): argmin over the simplex of w^T K w. Degree 0.

    Args:
        gram: (T, T) float64.

    Returns:
        weights (T) float64, which sum to 1, and status (T) int64.
    """
    return _mgda(gram)


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
