"""ConFIG: the same angle with every gradient."""

from __future__ import annotations

from torch import Tensor

from mtlkernels import ops
from mtlkernels.methods.gram.base import GramMethod


class ConFIG(GramMethod):
    r"""Conflict-free inverse gradients (Liu et al., arXiv 2408.11104).

    .. math::
        d = \Bigl(\sum_i \langle g_i, x \rangle\Bigr) x, \qquad x = \frac{U^+ 1}{\lVert U^+ 1
        \rVert}, \quad u_i = \frac{g_i}{\lVert g_i \rVert}

    With U the unit gradients u_i = g_i / ||g_i|| and x = U^+ 1: d = (sum_i <g_i, x'>) x', x' = x /
    ||x||. All cosines <u_i, d> / ||d|| are equal wherever the gradients allow it. From K alone: y =
    C^+ 1 with C the cosines, w_i = (y_i / ||g_i||) (n^T C y) / (y^T C y), n the norms. Singular
    values and rank are C's, so norms of any size and identical gradients do no harm; a gradient
    whose part outside the span of others is no more than rounding noise in K is in it. Where the
    unit gradients add up to zero, d = 0 and the status is STATIONARY. Homogeneous of degree 1 in
    the gradients.

    For dependent gradients x may project negatively on some, and even the sum of the gradients'
    projections on it, the length, may be negative. The paper's d then points along -x: it is the
    projection of the summed gradient on the line of x, so the sum of the losses falls, but all
    <u_i, d> together are negative, which is ascent where each loss counts in units of its own
    gradient. Along x it is the other way round. Only d = 0 ascends in neither sense: that is the
    answer, and the status is STATIONARY.

    Where the rank cannot be decided, as rounding noise in K is of the size of what is left of a
    gradient, or noise may move d by more than 1e-4, the status is ILL_CONDITIONED.

    The published README speaks of equal inner products; paper and code have equal cosines. For two
    tasks the published code takes another formula, which loses the length where gradients are
    nearly parallel and is NaN for a zero gradient; here two tasks are no special case.

    Use when:
        every loss should fall at the same angle: the losses of a physics-informed network, for
        example.

    Avoid when:
        there are about as many tasks as independent directions, or gradients are nearly
        opposite: the direction becomes short or zero.
    """

    paper = "arXiv 2408.11104"
    inverts_gram = True

    def forward(self, gram: Tensor, losses: Tensor | None = None) -> Tensor:
        weights, self.status = ops.equiangular(gram, int(ops.EquiangularLength.PROJECTIONS))
        return weights
