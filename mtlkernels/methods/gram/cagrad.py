"""CAGrad: the worst task's gain, maximised near the mean gradient."""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor

from mtlkernels import ops
from mtlkernels.methods.gram.base import GramMethod
from mtlkernels.methods.numbers import Numbers
from mtlkernels.methods.preference import has_preference, preferred_shares, register_preference


class CAGrad(GramMethod):
    r"""Conflict-averse gradient descent (Liu et al., arXiv 2110.14048).

    .. math::
        d = \arg\max_d \min_i \langle g_i, d \rangle \;\text{ subject to }\; \lVert d - g_0
        \rVert \le c \lVert g_0 \rVert, \qquad g_0 = \frac{1}{T} \sum_i g_i

    The direction that maximises the smallest <g_i, d> in a ball about the mean gradient g0. With w
    = argmin over the simplex of <g_w, g0> + c ||g0|| ||g_w||, g_w = sum_i w_i g_i: d = g0 + c
    ||g0|| g_w / ||g_w||. Solved exactly by an active set, at any scale of the gradients. If g_w = 0
    (the gradients are Pareto-stationary), d is the direction nearest to g0 that conflicts with no
    task, and the status is STATIONARY. If gradients cancel to less than the rounding noise of K, a
    ridge keeps d inside the ball and the status is ILL_CONDITIONED. Degree 1 in the gradients.

    Args:
        c: at least 0; 0 gives the mean over the tasks whose gradient is not zero. The paper's runs
            use 0.4 on NYUv2 and Cityscapes, 0.9 on MT10, 0.5 on MT50; LibMTL's default is 0.5.
        rescale: 0 leaves d as it is, which is the paper's algorithm and the default here; 1 divides
            by 1 + c^2, as the published dense-prediction code, nash-mtl and LibMTL do; 2 divides by
            1 + c.
        reduction: "mean", the paper's, or "sum", T times that, which the published code writes.
        preference: p, one number per task, at least 0, in order or by name, as shares of their sum
            over the tasks whose gradient is not zero: g0 = sum_i p_i g_i, as in RACO (arXiv
            2602.02495). None is the mean.
        clip: RACO's clip: the weights w of the pull become min(w_i, p_i), so that no task pulls
            more than its preference, at the same length. A stationary step has no w to clip.

    With `preference` or `clip` the problem is solved in plain torch, which on a GPU reads K back.
    RACO's runs use c = 0.4 and shares such as 0.8 and 0.2.

    Use when:
        you want the mean gradient with a floor under the worst task; try `c` from 0.2 to 0.8.

    Avoid when:
        one gradient is far longer than the others: the ball is measured by the mean, which that
        gradient decides; take `IMGrad` or normalise first.
    """

    paper = "arXiv 2110.14048"

    preference: Tensor

    def __init__(
        self,
        c: float = 0.4,
        *,
        rescale: Literal[0, 1, 2] = 0,
        reduction: Literal["mean", "sum"] = "mean",
        preference: Numbers | None = None,
        clip: bool = False,
    ) -> None:
        super().__init__()
        if not (math.isfinite(c) and c >= 0):
            raise ValueError(f"c={c}: it must be finite and at least 0")
        if rescale not in (0, 1, 2):
            raise ValueError(f"rescale={rescale!r}: choose 0, 1 or 2")
        if reduction not in ("mean", "sum"):
            raise ValueError(f'reduction={reduction!r}: choose "mean" or "sum"')
        self.c = float(c)
        self.rescale = rescale
        self.reduction = reduction
        self.clip = clip
        register_preference(self, preference)

    def forward(self, gram: Tensor, losses: Tensor | None = None) -> Tensor:
        total = self.reduction == "sum"
        if not (has_preference(self, gram.device) or self.clip):
            weights, self.status = ops.cagrad(gram, self.c, self.rescale, total)
            return weights
        ops.check_gram(gram)
        takes_part = gram.diagonal() != 0
        shares = preferred_shares(self, takes_part)
        weights, self.status = ops.cagrad_preferred(gram, shares, self.c, self.rescale, self.clip)
        return weights * takes_part.sum() if total else weights

    def extra_repr(self) -> str:
        told = f"c={self.c}, rescale={self.rescale}, reduction={self.reduction!r}"
        if len(self.preference):
            told += f", preference={self.preference.tolist()}"
        return told + (", clip=True" if self.clip else "")
