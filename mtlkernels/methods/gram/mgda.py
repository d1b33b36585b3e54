"""MGDA: the shortest convex combination of the gradients."""

from __future__ import annotations

from torch import Tensor

from mtlkernels import ops
from mtlkernels.methods.gram.base import GramMethod


class MGDA(GramMethod):
    r"""Multiple-gradient descent (Désidéri 2012; Sener and Koltun, arXiv 1810.04650).

    .. math::
        w = \arg\min_{w \ge 0, \sum_i w_i = 1} \Bigl\lVert \sum_i w_i g_i \Bigr\rVert^2,
        \qquad d = \sum_i w_i g_i

    w = argmin over the simplex of ||sum_i w_i g_i||^2, d = sum_i w_i g_i. Solved exactly by an
    active set. If zero is in the convex hull of the gradients, d is zero up to rounding and the
    status is STATIONARY; if rounding noise in K may move d by more than 1e-4 of its length, it is
    ILL_CONDITIONED. Short gradients dominate by construction. Homogeneous of degree 1 in the
    gradients.

    A task whose gradient is zero takes no part; taken literally, the problem would have the
    solution d = 0 and stop the training of all tasks. Known implementations: the official one and
    its ports return 0.999 and 0.001 where a vertex is the answer, stop at 1e-5 and cannot take one
    task; torchjd stops Frank and Wolfe's iteration at 1e-3 or after 100 steps; nash-mtl multiplies
    by T. The official code finds w on normalised gradients (l2, loss or both) and applies it to the
    raw ones: `Normalized(MGDA(), by=..., keep_weights=True)`; LibMTL combines the normalised ones.

    Use when:
        no task may get worse in a step and you accept slow progress on all of them.

    Avoid when:
        the gradients differ in length: the shortest one decides the direction; take
        `Normalized(MGDA())`.
    """

    paper = "arXiv 1810.04650"

    def forward(self, gram: Tensor, losses: Tensor | None = None) -> Tensor:
        weights, self.status = ops.mgda(gram)
        return weights
