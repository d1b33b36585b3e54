"""IMTL-G: the same projection on every gradient."""

from __future__ import annotations

from torch import Tensor

from mtlkernels import ops
from mtlkernels.methods.gram.base import GramMethod


class IMTLG(GramMethod):
    r"""Impartial multi-task learning, its gradient part (ICLR 2021, openreview IMPnRXEWpvr).

    .. math::
        \langle u_i, d \rangle = \langle u_j, d \rangle \;\forall i, j, \qquad \sum_i w_i = 1,
        \quad u_i = \frac{g_i}{\lVert g_i \rVert}

    <u_i, d> is the same for all i, u_i = g_i / ||g_i||, and sum_i w_i = 1. In closed form
    w = v / sum v, v_i = (C^+ 1)_i / ||g_i||, C the cosines. For linearly independent gradients
    v = K^-1 n, n the norms. Weights may be negative. Homogeneous of degree 1 in the gradients.

    The direction sum_i v_i g_i never ascends: its projections are 1. But sum v may be negative, and
    the paper's division would then turn the step around for every task, as known implementations
    do. Here the direction keeps its sign: where sum v is not positive (not above 1e-6 sum |v|),
    w = v / sum |v|, which is the paper's rule whenever no weight is negative.

    If gradients are linearly dependent and no direction projects equally on all, d is the
    least-squares solution; if the unit gradients add up to zero, d = 0 and the status is
    STATIONARY. A gradient whose part outside the span of others is no more than the noise of K
    counts as dependent. Where that cannot be decided (a float32 gradient and a rounded multiple of
    it), or noise may move d by more than 1e-4, the status is ILL_CONDITIONED. ConFIG is the same
    direction at another length.

    Known implementations invert a matrix of inner products as it is: LibMTL fails on identical
    gradients and is NaN for a zero one; nash-mtl and SamsungLabs add 1e-8 then, whatever the scale.

    Use when:
        every loss should fall at the same rate per unit of its own gradient.

    Avoid when:
        there are many tasks: weights then often become negative.
    """

    paper = "openreview IMPnRXEWpvr"
    inverts_gram = True

    def forward(self, gram: Tensor, losses: Tensor | None = None) -> Tensor:
        weights, self.status = ops.equiangular(gram, int(ops.EquiangularLength.UNIT_SUM))
        return weights
