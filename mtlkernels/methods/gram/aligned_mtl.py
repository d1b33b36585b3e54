"""Aligned-MTL: the gradients' principal components at one length."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from mtlkernels import ops
from mtlkernels.methods.gram.base import GramMethod
from mtlkernels.methods.numbers import Numbers, numbers_of


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
        preference: p, one number per task, at least 0 and not all 0, in order or by name; None is
            ones.
        reduction: "sum" uses p unchanged; with ones this is the published code. "mean" divides p by
            its sum over the tasks whose gradient is not zero; with ones this is TorchJD's default.

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

    preference: Tensor | None

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
        if preference is None:
            self.register_buffer("preference", None)
        else:
            given, task_names = numbers_of(preference)
            if given.dim() != 1 or not (given.isfinite() & (given >= 0)).all():
                raise ValueError(
                    f"preference={preference}: give one finite number per task, at least 0"
                )
            if not given.any():
                raise ValueError(f"preference={preference}: one number at least must be positive")
            self.register_given("preference", given, task_names, persistent=True)
        self.scale = scale
        self.reduction = reduction
        self._scale = ops.AlignedScale[scale.upper()]

    def forward(self, gram: Tensor, losses: Tensor | None = None) -> Tensor:
        preference = self.preference
        if preference is not None:
            if len(preference) != len(gram):
                raise ValueError(f"preference has {len(preference)} numbers for {len(gram)} tasks")
            if preference.device != gram.device:
                preference = self.preference = preference.to(gram.device)
        mean = self.reduction == "mean"
        weights, self.status = ops.aligned(gram, preference, int(self._scale), mean)
        return weights

    def extra_repr(self) -> str:
        told = "" if self.preference is None else f", preference={self.preference.tolist()}"
        return f"scale={self.scale!r}{told}, reduction={self.reduction!r}"
