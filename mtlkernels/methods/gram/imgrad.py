"""IMGrad: CAGrad with a balance that follows the angle between the mean and MGDA's direction."""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor

from mtlkernels import ops
from mtlkernels.methods.gram.base import GramMethod


class IMGrad(GramMethod):
    r"""Imbalance-sensitive gradient descent (arXiv 2503.08006).

    .. math::
        d = g_0 + c \lVert g_0 \rVert \frac{g_w}{\lVert g_w \rVert}, \qquad g_w = \sum_i w_i
        g_i

    d = g0 + c ||g0|| g_w / ||g_w||, g0 the mean gradient and g_w = sum_i w_i g_i. With
    x = cos(g0, MGDA's direction), w is the minimiser over the simplex of

        "paper":  (1 - x) <g_w, g0> + x c ||g0|| ||g_w||^2
        "code":   (1.5 - x) <g_w, g0> + x c ||g0|| ||g_w||

    Both solved exactly by an active set, after MGDA's problem. If the gradients are
    Pareto-stationary, MGDA has no direction and x no meaning: the result is CAGrad's and the status
    is STATIONARY. Where rounding noise in K may move d by more than 1e-4, a ridge keeps it inside
    the ball and the status is ILL_CONDITIONED, as in CAGrad.

    The code's form has degree 1 in the gradients. The paper's has none: its second term carries one
    power more, so a common factor of all gradients (a loss scaler's, a batch's, a smaller loss late
    in training) moves w from one end of its range to the other. That, and that all published
    numbers are of the code's form, makes it the default.

    Args:
        c: at least 0; 0 gives the mean. 0.8 is the published code's.
        form: which of the two; they are different methods.
        rescale: 0 leaves d as it is, the paper's; 1 divides by 1 + c^2, as the published code does;
            2 divides by 1 + c.

    The published code solves with SLSQP on the raw Gram matrix.

    Use when:
        you like `CAGrad`, and the gradients have very different lengths.

    Avoid when:
        the gradients have similar lengths: `CAGrad` then gives much the same and solves one problem
        less.
    """

    paper = "arXiv 2503.08006"

    def __init__(
        self,
        c: float = 0.8,
        *,
        form: Literal["paper", "code"] = "code",
        rescale: Literal[0, 1, 2] = 0,
    ) -> None:
        super().__init__()
        if not (math.isfinite(c) and c >= 0):
            raise ValueError(f"c={c}: it must be finite and at least 0")
        if form not in ("paper", "code"):
            raise ValueError(f'form={form!r}: choose "paper" or "code"')
        if rescale not in (0, 1, 2):
            raise ValueError(f"rescale={rescale!r}: choose 0, 1 or 2")
        self.c = float(c)
        self.form = form
        self.rescale = rescale
        self._form = int(ops.IMGradForm[form.upper()])

    def forward(self, gram: Tensor, losses: Tensor | None = None) -> Tensor:
        weights, self.status = ops.imgrad(gram, self.c, self._form, self.rescale)
        return weights

    def extra_repr(self) -> str:
        return f"c={self.c}, form={self.form!r}, rescale={self.rescale}"
