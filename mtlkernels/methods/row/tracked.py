"""Any Gram method on moving averages of the tasks' gradients."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mtlkernels import ops
from mtlkernels.methods.base import NON_FINITE
from mtlkernels.methods.gram.base import GramMethod
from mtlkernels.methods.row.averages import KeepsRows, ones, positive_losses
from mtlkernels.methods.row.base import RowStep


class Tracked(KeepsRows):
    r"""A Gram method on moving averages of the gradients, m_t <- b m_t + (1 - b) g_t.

    .. math:: m_t \leftarrow b \, m_t + (1 - b) g_t, \qquad d = \sum_t w_t m_t

    The method gets the Gram matrix of the averages m, computed in the pass that updates them, and d
    = sum_t w_t m_t. `DBMTL` (arXiv 2308.12029) is this with `AvgNorm("max")` and log-losses. The
    averages start at zero, as LibMTL's do, so the first step's is (1 - b) g_t; there is no
    correction for that. They cost T N numbers of memory, float32 (float64 for float64 gradients).
    An absent gradient counts as zero. The report's Gram matrix, norms and cosines are those of the
    averages.

    A step with a gradient that is not finite gives a direction that is not; the averages of the
    elements concerned (with `log_losses`, of a whole task whose loss is not finite) do not change,
    and the step is not counted. With `log_losses` a task whose loss is <= 0 takes no part in its
    step: its average does not change, the method sees a zero gradient, its weight is 0, and its
    status is INVALID_LOSS. Pass `scaler=` to `backward`: a GradScaler's scale would otherwise enter
    the averages. With `weight_heads=True` a head gets w_t times its own gradient, not an average of
    it: with `log_losses` that of log L_t, so w_t / L_t.

    Args:
        method: any Gram method.
        beta: b, in 0 .. 1, 1 excluded. LibMTL's default for DB-MTL is 0.9; the paper searches 0.1,
            0.5 and 0.9, each also divided by sqrt(k).
        sigma: in step k, b = beta / k^sigma. LibMTL: 0.
        log_losses: average the gradients of log L_t, g_t / L_t; the method sees log L_t. Losses
            have to be positive. LibMTL's log(L + 1e-8) would damp losses of that size.

    Use when:
        batches are small: any Gram method then works on averages over steps, for example
        `Tracked(NTKMTL())`.

    Avoid when:
        memory is short (T N numbers), or the base optimizer's momentum already averages enough.
    """

    paper = "arXiv 2308.12029"
    keeps = "T averages, a count"

    def __init__(
        self,
        method: GramMethod,
        beta: float = 0.9,
        *,
        sigma: float = 0.0,
        log_losses: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(method, GramMethod):
            raise ValueError(
                f"method is a {type(method).__name__}, not a Gram method: give one, "
                "for example PCGrad()"
            )
        if not 0 <= beta < 1:
            raise ValueError(f"beta={beta}: it must be in 0 .. 1, without 1")
        if not (math.isfinite(sigma) and sigma >= 0):
            raise ValueError(f"sigma={sigma}: it must be finite and at least 0")
        self.method = method
        self.beta = float(beta)
        self.sigma = float(sigma)
        self.log_losses = log_losses

    def forward(
        self,
        lists: Sequence[Sequence[Tensor]],
        num_tasks: int,
        losses: Tensor | None = None,
    ) -> RowStep:
        scale = ones(lists, num_tasks)
        out, invalid = None, torch.zeros(num_tasks, dtype=torch.int64, device=scale.device)
        if self.log_losses:
            positive, out, invalid = positive_losses(losses, scale, type(self).__name__)
            assert losses is not None
            scale, losses = 1 / positive, torch.where(out, losses.to(scale), positive.log())
        rate = 1 - self.beta / (self.step.to(scale) + 1) ** self.sigma
        gram = self._track(lists, num_tasks, scale, rate, out)
        weights = self.method(gram, losses)
        status = self.method.status
        if status.shape != weights.shape:
            status = ops.task_status(gram)
        self.status = torch.where(invalid == 0, status, status & NON_FINITE | invalid)
        weights = torch.where(gram.isfinite().all(), weights, torch.nan)
        if out is not None:
            weights = torch.where(out, 0.0, weights)
        heads = torch.where(weights == 0, weights, scale * weights)
        return RowStep(self._combined(lists, weights), weights, gram, heads)

    def extra_repr(self) -> str:
        return f"beta={self.beta}, sigma={self.sigma}, log_losses={self.log_losses}"
