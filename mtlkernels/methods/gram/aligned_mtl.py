"""Aligned-MTL: the gradients' principal components at one length."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from mtlkernels import ops
from mtlkernels.methods.gram.base import GramMethod
from mtlkernels.methods.numbers import Numbers
from mtlkernels.methods.preference import has_preference, preferred_shares, register_preference


class AlignedMTL(GramMethod):
    r"""Independent component alignment (Senushkin et al., arXiv 2305.19000).

    .. math:: d = G^T B p, \qquad B = s V \Lambda^{-1/2} V^T, \qquad G G^T = V \Lambda V^T

    With K = V Lambda V^T over its rank: d = G^T B p, B = s V Lambda^(-1/2) V^T. The aligned
    gradients B G are orthogonal and of equal length s if all gradients are linearly independent.
    Degree 1 in the gradients.

    Args:
        scale: s. "min", the smallest singular value of G, is the default of the paper and of the
            published code; "median" (for an even number the lower of the middle two) and "rmse"
            (the root of the mean eigenvalue) are the other choices of that code. Only values within
            the rank count.
        preference: one number per task, at least 0 and not all 0, in order or by name, as shares of
            their sum over the tasks whose gradient is not zero; None is equal shares.
        reduction: with "sum" p is the shares times the number of those tasks: without a preference
            ones, as in the published code. With "mean" p is the shares: TorchJD's default.

    A gradient adds to the rank if its part outside the span of the others exceeds the rounding
    noise of K (8 * 2^-53 of the squared lengths that cancel), however short it is. The published
    code drops eigenvalues of K below T times float32's epsilon of the largest (1.2e-7), thus tasks
    whose gradients are 1e3 times shorter. With "min" the step shrinks with the smallest singular
    value: near-parallel gradients give short steps, and no weight exceeds |p|. With the other
    scales weights grow instead. The status is ILL_CONDITIONED where that part is too near to the
    noise to decide (the gradient then counts as dependent), or where noise may move the direction
    by more than 1e-4: with "min" for pairs of gradients nearer than about 6e-6 of their length.

    Use when:
        a few tasks both conflict and have gradients of different lengths.

    Avoid when:
        gradients are nearly parallel: with `scale="min"` the steps become short.
    """

    paper = "arXiv 2305.19000"
    inverts_gram = True

    preference: Tensor

    def __init__(
        self,
        scale: Literal["min", "median", "rmse"] = "min",
        preference: Numbers | None = None,
        *,
        reduction: Literal["sum", "mean"] = "sum",
    ) -> None:
        super().__init__()
        names = [s.name.lower() for s in ops.AlignedScale]
        if scale not in names:
            raise ValueError(f"scale={scale!r}: choose {', '.join(names)}")
        if reduction not in ("sum", "mean"):
            raise ValueError(f'reduction={reduction!r}: choose "sum" or "mean"')
        register_preference(self, preference)
        self.scale = scale
        self.reduction = reduction
        self._scale = ops.AlignedScale[scale.upper()]

    def forward(self, gram: Tensor, losses: Tensor | None = None) -> Tensor:
        ops.check_gram(gram)
        preference = None
        if has_preference(self, gram.device):
            takes_part = gram.diagonal() != 0
            preference = takes_part.sum() * preferred_shares(self, takes_part)
        mean = self.reduction == "mean"
        weights, self.status = ops.aligned(gram, preference, int(self._scale), mean)
        return weights

    def extra_repr(self) -> str:
        given = self.preference.tolist()
        told = f", preference={given}" if given else ""
        return f"scale={self.scale!r}{told}, reduction={self.reduction!r}"
