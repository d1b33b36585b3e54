"""UPGrad and DualProj: projections onto the directions that conflict with no task."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor

from mtlkernels import ops
from mtlkernels.methods.gram.base import GramMethod
from mtlkernels.methods.numbers import Numbers
from mtlkernels.methods.preference import has_preference, preferred_shares, register_preference


class _Projection(GramMethod):
    preference: Tensor

    @staticmethod
    @abstractmethod
    def _project(gram: Tensor, preference: Tensor) -> tuple[Tensor, Tensor]:
        """Weights and status."""

    def __init__(self, preference: Numbers | None = None) -> None:
        super().__init__()
        register_preference(self, preference)

    def forward(self, gram: Tensor, losses: Tensor | None = None) -> Tensor:
        ops.check_gram(gram)
        if has_preference(self, gram.device):
            preference = preferred_shares(self, gram.diagonal() != 0)
        else:
            preference = self.preference  # of zero elements: the op takes equal shares
        weights, self.status = self._project(gram, preference)
        return weights

    def extra_repr(self) -> str:
        return f"preference={self.preference.tolist() or None}"


class DualProj(_Projection):
    r"""Projection of the mean gradient onto {d : <g_i, d> >= 0 for all i} (arXiv 2406.16232).

    .. math::
        d = \arg\min_d \Bigl\lVert d - \sum_i p_i g_i \Bigr\rVert \;\text{ subject to }\;
        \langle g_i, d \rangle \ge 0

    d = sum_i (p_i + v_i) g_i with v = argmin over v >= 0 of ||sum_i (p_i + v_i) g_i||. Solved
    exactly by an active set at any scale of the gradients. Where rounding noise in K may move d by
    more than 1e-4, a ridge bounds the v_i and the status is ILL_CONDITIONED. Homogeneous of degree
    1 in the gradients.

    Args:
        preference: p, one number per task, at least 0, in order or by name, as shares of their sum;
            None is 1/T, the paper's. Both over the tasks whose gradient is not zero.

    torchjd adds a ridge of 1e-4 and takes K as zero where its trace is below 1e-4, which makes
    small gradients' answer the plain mean.

    Use when:
        no step may conflict with any task, and the direction should stay as near to the mean as
        it can.

    Avoid when:
        tasks should keep their share of the direction: `UPGrad` projects each gradient.
    """

    paper = "arXiv 2406.16232"

    _project = staticmethod(ops.dualproj)


class UPGrad(_Projection):
    r"""Each gradient projected so that it conflicts with no other, then averaged (2406.16232).

    .. math::
        d = \sum_i p_i \, P(g_i), \qquad P \text{ the projection onto } \{d : \langle g_j, d
        \rangle \ge 0 \;\forall j\}

    d = sum_i p_i P(g_i), P the projection onto {d : <g_j, d> >= 0 for all j}. T convex problems
    over one matrix, solved exactly by an active set at any scale. For two tasks it is half of
    PCGrad. Where rounding noise in K may move d by more than 1e-4, a ridge bounds the weights and
    the status is ILL_CONDITIONED. Homogeneous of degree 1 in the gradients.

    Args:
        preference: p, one number per task, at least 0, in order or by name, as shares of their sum;
            None is 1/T, the paper's. Both over the tasks whose gradient is not zero.

    torchjd adds a ridge of 1e-4 and takes K as zero where its trace is below 1e-4, which makes
    small gradients' answer the plain mean.

    Use when:
        no step may conflict with any task, and each task should keep its share of the
        direction.

    Avoid when:
        the gradients differ in length by orders of magnitude: projections keep lengths; put it
        inside `Normalized`.
    """

    paper = "arXiv 2406.16232"

    _project = staticmethod(ops.upgrad)
