"""DWA: more weight to the losses that fall more slowly."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from mtlkernels.methods.base import check_reduction
from mtlkernels.methods.loss.base import LossMethod


class DWA(LossMethod):
    r"""Dynamic weight average (Liu et al., arXiv 1803.10704): w = T softmax(r / temperature).

    .. math::
        w = T \operatorname{softmax}\Bigl(\frac{r}{\text{temperature}}\Bigr), \qquad r_i =
        \frac{\bar L_i(\text{last window})}{\bar L_i(\text{window before})}

    r_i is the mean of loss i over the last full window of steps by its mean over the one before;
    equal weights during the first two windows. Scaling one loss by a constant changes no weight.

    Args:
        temperature: 2, the paper's.
        window: steps in a window. The paper, LibMTL and TorchJD take an epoch, `len(loader)`; 25 is
            nash-mtl's and SamsungLabs', whose two windows slide by one step at a time.
        reduction: "sum", the paper's: the weights sum to T; "mean": to 1, as in nash-mtl.

    A loss of 0 is valid. A task's windows consist of the steps that have it, and its r is 1 until
    it has had two. A task whose mean over the earlier window is 0 has no ratio: it takes no part
    until that window has passed and does not count in T; its status is INVALID_LOSS.

    Use when:
        the losses have one unit and fall at different rates.

    Avoid when:
        the losses have different scales: the weights stay near 1 and do not correct that.
    """

    paper = "arXiv 1803.10704"
    keeps = "means of two windows per task"

    total: Tensor
    last: Tensor
    previous: Tensor
    steps: Tensor

    def __init__(
        self,
        temperature: float = 2.0,
        *,
        window: int = 25,
        reduction: Literal["sum", "mean"] = "sum",
    ) -> None:
        super().__init__()
        if not (math.isfinite(temperature) and temperature > 0):
            raise ValueError(f"temperature={temperature}: it must be finite and positive")
        if window < 1:
            raise ValueError(f"window={window}: it must be at least 1")
        check_reduction(reduction)
        self.temperature = float(temperature)
        self.window = window
        self.reduction = reduction
        self.register_state("total", 0.0)
        self.register_state("last", 1.0)
        self.register_state("previous", 1.0)
        self.register_state("steps", 0.0)

    def forward(self, losses: Tensor) -> Tensor:
        losses = self.admit(losses)
        known = self.steps >= 2 * self.window
        undefined = known & (self.previous == 0)
        ratio = torch.where(known & ~undefined, self.last / self.previous, 1.0)
        self._advance(losses.detach())
        part = self.exclude(undefined)
        weights = self.softmax(ratio / self.temperature)
        if self.reduction == "sum":
            weights = part.sum() * weights
        return (weights * losses).sum()

    def _advance(self, losses: Tensor) -> None:
        steps, total = self.steps + 1, self.total + losses
        full = steps % self.window == 0
        self.remember(
            steps=steps,
            total=torch.where(full, 0.0, total),
            previous=torch.where(full, self.last, self.previous),
            last=torch.where(full, total / self.window, self.last),
        )

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, window={self.window}, reduction={self.reduction!r}"
