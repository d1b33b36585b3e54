"""Weights that follow the size of each loss: learned (UW, IMTLL) or in closed form (UWSO)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mtlkernels.methods.loss.base import LossMethod
from mtlkernels.methods.numbers import pick


class Learned(LossMethod):
    """One learned number per task."""

    keeps = "a learned scalar per task"
    _learned = ("s",)

    def __init__(self, num_tasks: int, init: float) -> None:
        super().__init__()
        if num_tasks < 1:
            raise ValueError(f"num_tasks={num_tasks}: it must be at least 1")
        if not math.isfinite(init):
            raise ValueError(f"init={init}: it must be finite")
        self.s = nn.Parameter(torch.full((num_tasks,), float(init)))

    def admit(self, losses: Tensor, above: float | None = None) -> Tensor:
        losses = super().admit(losses, above)
        if len(losses) != len(self.present_s()):
            raise ValueError(
                f"this {type(self).__name__} was made for {len(self.s)} tasks and got "
                f"{len(losses)} losses: make one with num_tasks={len(losses)}"
            )
        return losses

    def present_s(self) -> Tensor:
        """s of the tasks that are present, float64."""
        return (self.s if self._present is None else pick(self.s, self._present)).double()

    def extra_repr(self) -> str:
        return f"num_tasks={len(self.s)}"


class UW(Learned):
    r"""Uncertainty weighting (Kendall et al., arXiv 1705.07115): sum_i k L_i e^-s_i + s_i / 2.

    .. math:: L = \sum_i k e^{-s_i} L_i + \frac{s_i}{2}, \quad s \text{ learned}

    s_i = log sigma_i^2 is learned: the weights are k e^-s_i, 1 / (2 L_i) at the optimum of s for
    either k. Pass `method.parameters()` to the optimizer. (nash-mtl trains s at rate 0.025.)

    Args:
        num_tasks: T.
        init: of every s_i; 0, as in most code. LibMTL starts at -0.5.
        factor: k; 0.5, the paper's likelihood of a regression. Its classification, and SamsungLabs
            for every task, take 1.

    At the optimum of s, scaling one loss changes no gradient. The scalar may be negative.

    Use when:
        the losses are regressions with noise of different sizes.

    Avoid when:
        losses can be negative, or you cannot add `method.parameters()` to the optimizer.
    """

    paper = "arXiv 1705.07115"

    def __init__(self, num_tasks: int, *, init: float = 0.0, factor: float = 0.5) -> None:
        super().__init__(num_tasks, init)
        if not (math.isfinite(factor) and factor > 0):
            raise ValueError(f"factor={factor}: it must be finite and positive")
        self.factor = float(factor)

    def forward(self, losses: Tensor) -> Tensor:
        losses = self.admit(losses)
        s = self.present_s()
        return (self.factor * losses * (-s).exp() + s / 2).sum()


class IMTLL(Learned):
    r"""IMTL-L (Liu et al., ICLR 2021, openreview IMPnRXEWpvr): sum_i e^s_i L_i - s_i, s learned.

    .. math:: L = \sum_i e^{s_i} L_i - s_i, \quad s \text{ learned}

    At the optimum e^s_i = 1 / L_i: every weighted loss is 1, and training that of `SI`. Pass
    `method.parameters()` to the optimizer.

    Args:
        num_tasks: T.
        init: of every s_i; 0.

    LibMTL's "IMTL" feeds these losses to IMTL-G and has no pure IMTL-L.

    Use when:
        the losses have different units, and the weights should be smoothed over time; at the
        optimum it is `SI`.

    Avoid when:
        you cannot add `method.parameters()` to the optimizer.
    """

    paper = "openreview IMPnRXEWpvr"

    def __init__(self, num_tasks: int, *, init: float = 0.0) -> None:
        super().__init__(num_tasks, init)

    def forward(self, losses: Tensor) -> Tensor:
        losses = self.admit(losses)
        s = self.present_s()
        return (s.exp() * losses - s).sum()


class UWSO(LossMethod):
    r"""Soft optimal uncertainty weighting (Kirchdorfer et al., arXiv 2408.07985).

    .. math:: w = \operatorname{softmax}\Bigl(\frac{1}{\tau L}\Bigr)

    w = softmax(1 / (tau L)), the losses in w detached: the analytical optimum 1 / L of uncertainty
    weighting for an L1 loss, tempered. The weights sum to 1. They are not scale-free: losses times
    s ask for tau / s. A loss <= 0 has no such optimum: it takes no part, and its status is
    INVALID_LOSS.

    Args:
        temperature: tau. The paper tunes it for each data set and names no default; 1 here is not a
            recommendation.

    Use when:
        you want uncertainty weighting with nothing to learn, and can tune the temperature.

    Avoid when:
        the losses' scale changes during training: `temperature` has the unit of 1 / L.
    """

    paper = "arXiv 2408.07985"

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        if not (math.isfinite(temperature) and temperature > 0):
            raise ValueError(f"temperature={temperature}: it must be finite and positive")
        self.temperature = float(temperature)

    def forward(self, losses: Tensor) -> Tensor:
        losses = self.admit(losses, above=0.0)
        weights = self.softmax(1 / (self.temperature * losses.detach()))
        return (weights * losses).sum()

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}"
