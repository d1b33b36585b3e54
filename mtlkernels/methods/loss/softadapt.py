"""SoftAdapt: more weight to the losses that fall more slowly than a step ago."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mtlkernels.methods.loss.base import LossMethod


class SoftAdapt(LossMethod):
    r"""SoftAdapt (Heydari et al., arXiv 1912.12355), with PhysicsNeMo's ratio of losses.

    .. math:: w = T \operatorname{softmax}(r), \qquad r_i = \frac{L_i}{L_i(\text{step before})}

    The weights sum to T. The first step is the plain sum, as is a task's part in its own first one:
    there r is 1. Scaling one loss for good changes no weight.

    The losses must be positive: one <= 0 takes no part in its step, INVALID_LOSS, and its r is of
    the last step that had it. PhysicsNeMo adds 1e-8 to both denominators, here there is no epsilon;
    otherwise the weights are its. The paper's rule takes the differences L_i - L_i(step before)
    times a constant, and has variants; they are not here.

    Use when:
        the losses of a physics-informed network fall at different rates, and you want a rule
        without numbers to tune.

    Avoid when:
        losses are noisy: one batch decides the ratio. `DWA` compares means of windows, `ReLoBRaLo`
        averages the weights.
    """

    paper = "arXiv 1912.12355"
    keeps = "a last loss per task"

    last: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_state("last", math.nan)

    def forward(self, losses: Tensor) -> Tensor:
        losses = self.admit(losses, above=0.0)
        seen = losses.detach()
        weights = relative_weights(self, seen, self.last)
        self.remember(last=seen)
        return (weights * losses).sum()


def relative_weights(method: LossMethod, seen: Tensor, before: Tensor, tau: float = 1.0) -> Tensor:
    """(T) T softmax(L / (tau L_before)) of the tasks that take part; the ratio of a new one is 1.

    Args:
        method: which says what tasks take part.
        seen: (T) this step's losses.
        before: (T) earlier ones, NaN where there is none.
        tau: the temperature.
    """
    ratio = torch.where(before.isnan(), 1.0, seen / before)
    return method.taking_part().sum() * method.softmax(ratio / tau)
