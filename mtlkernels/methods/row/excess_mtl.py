"""ExcessMTL: more weight to tasks whose excess risk is still large."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from mtlkernels import ops
from mtlkernels.methods.base import NON_FINITE, check_reduction
from mtlkernels.methods.row.averages import KeepsRows
from mtlkernels.methods.row.base import RowStep


class ExcessMTL(KeepsRows):
    r"""Robust weights by excess risks (He et al., ICML 2024, openreview JzWFmMySpn).

    .. math::
        w \leftarrow w \, e^{\eta r}, \quad r_t = \frac{e_t}{e_t(0)}, \; e_t = \sum
        \frac{g_t^2}{\sqrt{S_t + \epsilon}}, \qquad d = \sum_t w_t g_t

    S_t <- S_t + g_t^2 by element, e_t = sum g_t^2 / sqrt(S_t + eps) the estimated excess risk of
    task t, r_t = e_t / (its first value); w <- w exp(eta r), normalised; d = sum_t w_t g_t. In the
    first step all r are 1 and change nothing. The method is made for noisy labels: what a task
    cannot learn is not excess. It does not depend on the scale of a loss if eps is small against
    g^2.

    Args:
        eta: step of the weights, positive. LibMTL 1e-2; torchjd 1.0.
        warmup: steps in which the weights stay equal and whose mean excess is the first value. 1 is
            LibMTL's rule; the paper's experiments take three epochs. (torchjd's first step without
            warm-up exponentiates e itself; with n_warmup_steps it does as here.)
        reduction: "sum" has the weights sum to T, as LibMTL; "mean" to 1, as the paper and torchjd.
        eps: 1e-7 in all implementations, in the unit of squared gradients.

    A task's warm-up counts the steps that have it. One whose excess has been 0 takes its first
    positive one as its first value. S costs T N numbers of memory, float32 (float64 for float64
    gradients). A step with a gradient that is not finite gives a direction that is not, does not
    change the weights, and is not counted. The report has weights but no Gram matrix, because none
    is needed.

    Use when:
        some tasks have noisy labels, which should not take over.

    Avoid when:
        memory is short (T N numbers).
    """

    paper = "openreview JzWFmMySpn"
    keeps = "T sums, T weights, a count"

    logits: Tensor
    first: Tensor
    missed: Tensor

    def __init__(
        self,
        eta: float = 1e-2,
        *,
        warmup: int = 1,
        reduction: Literal["sum", "mean"] = "sum",
        eps: float = 1e-7,
    ) -> None:
        super().__init__()
        if not (math.isfinite(eta) and eta > 0):
            raise ValueError(f"eta={eta}: it must be finite and positive")
        if warmup < 1:
            raise ValueError(f"warmup={warmup}: it must be at least 1")
        if not (math.isfinite(eps) and eps >= 0):
            raise ValueError(f"eps={eps}: it must be finite and at least 0")
        check_reduction(reduction)
        self.eta = float(eta)
        self.warmup = warmup
        self.reduction = reduction
        self.eps = float(eps)
        self.register_lazy("logits", "logits")
        self.register_lazy("first")
        self.register_lazy("missed")  # steps that a task was not in

    def forward(
        self,
        lists: Sequence[Sequence[Tensor]],
        num_tasks: int,
        losses: Tensor | None = None,
    ) -> RowStep:
        excess, *more = self._each(
            lists, num_tasks, lambda grads, rows: ops.excess(grads, num_tasks, self.eps, rows)
        )
        for part in more:
            excess = excess + part.to(excess.device)
        self.status = torch.where(excess.isfinite(), 0, NON_FINITE)
        finite = excess.isfinite().all()
        logits = self._next_logits(excess, finite)
        weights = torch.softmax(logits, dim=0) * (num_tasks if self.reduction == "sum" else 1)
        weights = torch.where(finite, weights, torch.nan)
        directions = [ops.combine(grads, weights.to(grads[0].device)) for grads in lists]
        return RowStep(directions, weights)

    def _next_logits(self, excess: Tensor, finite: Tensor) -> Tensor:
        """The logarithms of the weights, moved; and the first values, where they are not yet."""
        if len(self.logits) == 0:
            self.logits, self.first = torch.zeros_like(excess), torch.zeros_like(excess)
            self.missed = torch.zeros_like(excess)
        steps = self.step - self.missed
        warming = steps < self.warmup
        mean = self.first + (excess - self.first) / (steps + 1)
        first = torch.where(warming | (self.first == 0), mean, self.first)
        first = torch.where(~warming & (self.first == 0), excess, first)
        ratio = torch.where(first > 0, excess / first, 0.0)
        slope = torch.where(warming, 0.0, self.eta * ratio)
        moved = torch.log_softmax(self.logits + slope, dim=0)
        moved = torch.where(warming.all(), self.logits, moved)
        self.first = torch.where(finite, first, self.first)
        self.logits = torch.where(finite, moved, self.logits)
        self.step.add_(finite)
        self._missed_by_absent = finite.double()
        return self.logits

    def _fill_of(self, name: str) -> float | Tensor:
        """A new task has missed all steps that there were."""
        return self.step.double() if name == "missed" else super()._fill_of(name)

    def extra_repr(self) -> str:
        return f"eta={self.eta}, warmup={self.warmup}, reduction={self.reduction!r}, eps={self.eps}"
