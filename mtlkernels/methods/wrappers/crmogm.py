"""CR-MOGM: any method's weights, averaged over the steps."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from mtlkernels.methods.base import INVALID_LOSS
from mtlkernels.methods.gram.base import GramMethod, SizedByTasks
from mtlkernels.methods.numbers import Numbers, numbers_of


class CRMOGM(SizedByTasks):
    r"""Exponential average of a method's weights (Zhou et al., NeurIPS 2022).

    .. math:: s \leftarrow \alpha s + (1 - \alpha) w, \qquad d = \sum_i s_i g_i

    s <- alpha s + (1 - alpha) w with w the method's weights. It starts from `initial_weights`;
    without them the first step takes w itself. The average reduces the bias that stochastic
    gradients give a min-max rule. `average` (T) and the method's own state are in `state_dict`. A
    step whose weights are not finite returns them and does not change the average. A task that
    takes no part because of its loss has weight 0 in that step, and its average does not change.

    Args:
        method: any Gram method.
        alpha: in 0 .. 1; 0 is the method itself. 0.9 is the usual choice.
        initial_weights: s before a task's first step, one finite number per task, in order or by
            name, in the unit of the method's weights. The paper starts at 1/T, for weights that sum
            to 1.

    Use when:
        the weights of a method jump from batch to batch.

    Avoid when:
        the method already averages (`MoCo`, `SDMGrad`), or must react at once.
    """

    paper = "NeurIPS 2022"
    keeps = "an average weight per task"

    average: Tensor
    initial_weights: Tensor
    _sized: ClassVar = {"average": ("own", math.nan)}

    def __init__(
        self,
        method: GramMethod,
        alpha: float = 0.9,
        initial_weights: Numbers | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(method, GramMethod):
            raise ValueError(
                f"method is a {type(method).__name__}, not a Gram method: give one, "
                "for example PCGrad()"
            )
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha={alpha}: it must be in 0 .. 1")
        self.method = method
        self.alpha = float(alpha)
        if initial_weights is None:
            empty = torch.empty(0, dtype=torch.float64)
            self.register_buffer("initial_weights", empty, persistent=False)
            return
        given, names = numbers_of(initial_weights)
        if given.dim() != 1 or len(given) == 0 or not given.isfinite().all():
            raise ValueError(f"initial_weights={initial_weights}: give one finite number per task")
        self.register_given("initial_weights", given, names)

    def forward(self, gram: Tensor, losses: Tensor | None = None) -> Tensor:
        if self._first_call(gram):
            self.average = torch.full_like(gram[0], torch.nan)
        weights = self.method(gram, losses)
        self.status = self.method.status
        finite = weights.isfinite().all()
        out = (weights == 0) & self._invalid(weights)
        before = self._before(gram)
        averaged = before.lerp(weights, 1 - self.alpha)
        following = torch.where(before.isnan(), weights, averaged)
        self.average = torch.where(finite & ~out, following, self.average)
        return torch.where(finite & ~out, following, weights)

    def _before(self, gram: Tensor) -> Tensor:
        """(T) the average so far; NaN where a task has none yet and no start."""
        start = self.initial_weights
        if len(start) == 0:
            return self.average
        if len(start) != len(gram):
            raise ValueError(f"initial_weights has {len(start)} numbers for {len(gram)} tasks")
        if start.device != gram.device:
            self.to(gram.device)
        return torch.where(self.average.isnan(), self.initial_weights, self.average)

    def _invalid(self, weights: Tensor) -> Tensor:
        """(T) whose loss the method could not take; none where it says nothing."""
        told = self.method.status
        known = told if told.shape == weights.shape else torch.zeros_like(weights).long()
        return (known & INVALID_LOSS) != 0

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}"
