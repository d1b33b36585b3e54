"""ReLoBRaLo: loss balancing by progress since the last step, and at random since the first."""

from __future__ import annotations

import math
from statistics import NormalDist

import torch
from torch import Tensor

from mtlkernels import ops
from mtlkernels.methods.loss.base import LossMethod
from mtlkernels.methods.loss.softadapt import relative_weights


class ReLoBRaLo(LossMethod):
    r"""Relative loss balancing with random lookback (Bischof, Kraus, arXiv 2110.09813).

    .. math::
        \lambda \leftarrow \alpha \bigl(\rho \lambda + (1 - \rho) \lambda^{(0)}\bigr) + (1 -
        \alpha) \lambda^{(t-1)}, \qquad \lambda^{(s)} = T \operatorname{softmax}\Bigl(
        \frac{L}{\tau L(s)}\Bigr), \quad \rho \sim \operatorname{Bernoulli}(\beta)

    The weights lambda are an average of two softmaxes of relative losses: against the step before,
    and, in a step that draws rho = 0, against the first step. The first step is the plain sum:
    lambda starts at 1. With all tasks the weights sum to T. Scaling one loss for good changes none.

    Args:
        alpha: in 0 .. 1, of the average.
        beta: in 0 .. 1, the probability to look back on the average alone.
        tau: the softmaxes' temperature, positive.
        seed: of the draws. They are a function of the seed and of the number of steps with finite
            losses, the same on every device and every rank; both are in `state_dict`.

    The defaults 0.95, 0.99 and 1 are those of PhysicsNeMo and neuraloperator, whose formula this
    is; they add 1e-8 to the denominators, here there is no epsilon. The losses must be positive:
    one <= 0 takes no part in its step, INVALID_LOSS, and its state stays. A task's first loss is
    that of its own first step.

    Use when:
        a physics-informed network has terms of very different size: only relative progress counts.

    Avoid when:
        losses rise for good reasons, as adversarial or annealed ones do: the weights follow.
    """

    paper = "arXiv 2110.09813"
    keeps = "a weight, two losses, seed, count"

    weights: Tensor
    first: Tensor
    last: Tensor
    seed: Tensor
    step: Tensor

    def __init__(
        self, alpha: float = 0.95, beta: float = 0.99, tau: float = 1.0, *, seed: int = 0
    ) -> None:
        super().__init__()
        for name, value in (("alpha", alpha), ("beta", beta)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name}={value}: it must lie in 0 .. 1")
        if not (math.isfinite(tau) and tau > 0):
            raise ValueError(f"tau={tau}: it must be finite and positive")
        self.alpha, self.beta, self.tau = float(alpha), float(beta), float(tau)
        # P(z < threshold) = beta for a standard normal z
        edge = math.copysign(math.inf, beta - 0.5)
        self._threshold = NormalDist().inv_cdf(beta) if 0 < beta < 1 else edge
        self.register_state("weights", 1.0)
        self.register_state("first", math.nan)
        self.register_state("last", math.nan)
        self.register_buffer("seed", torch.tensor(seed, dtype=torch.int64))
        self.register_buffer("step", torch.tensor(0, dtype=torch.int64))

    def forward(self, losses: Tensor) -> Tensor:
        losses = self.admit(losses, above=0.0)
        seen, new = losses.detach(), self.first.isnan()
        against_last = relative_weights(self, seen, self.last, self.tau)
        against_first = relative_weights(self, seen, self.first, self.tau)
        keeps = ops.normal_numbers(self.seed, self.step, 1) < self._threshold
        kept = torch.where(keeps, self.weights, against_first)
        weights = torch.where(new, 1.0, kept.lerp(against_last, 1 - self.alpha))
        weights = torch.where(self.taking_part(), weights, 0.0)
        first = torch.where(new, seen, self.first)
        self.remember(weights=weights, first=first, last=seen, step=self.step + 1)
        return (weights * losses).sum()

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}, beta={self.beta}, tau={self.tau}"
