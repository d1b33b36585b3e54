"""FAMO: weights that even out how fast the losses fall, learned from their change over a step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mtlkernels.methods.loss.base import LossMethod
from mtlkernels.methods.numbers import Numbers

_BETAS, _EPS = (0.9, 0.999), 1e-8  # Adam's own, which FAMO leaves as they are
_SHIFT = 1e-8  # added to every loss, as published


class FAMO(LossMethod):
    r"""Fast adaptive multitask optimization (Liu et al., arXiv 2306.03792).

    .. math::
        L = c \sum_i z_i \log D_i, \qquad z = \operatorname{softmax}(\xi), \quad D_i = L_i -
        b_i + 10^{-8}

    With z = softmax(xi), D_i = L_i - b_i + 1e-8 and c = 1 / sum_i (z_i / D_i), detached: the scalar
    is c sum_i z_i log D_i, so the weights c z_i / D_i sum to 1. After the step, `update` is given
    the losses of the same batch: delta_i = log D_i(before) - log D_i(after), and xi takes an Adam
    step along J_softmax(xi)^T delta + gamma xi.

        optimizer.backward(losses)
        optimizer.step()
        with torch.no_grad():
            optimizer.method.update(compute_losses(model, batch))

    This second forward pass updates the statistics of BatchNorm again and draws dropout again,
    unless you prevent it. Without `update`, xi does not change.

    Scaling one loss by a constant changes nothing (up to b and the 1e-8); scaling all losses by s
    scales the gradient of the scalar by s. D_i <= 0, a loss below its minimum b_i, has no
    logarithm: the task takes no part, before or after the step, its xi does not change, and its
    status is INVALID_LOSS.

    Args:
        lr: of xi; 0.025, the paper's.
        gamma: weight decay of xi; 0.001, the paper's for all but Cityscapes (0.01). The published
            class's own default is 1e-5, that of its scripts 0.01; LibMTL and TorchJD take 0.001.
        min_losses: b, T numbers, in order or by name, or one; 0.

    Use when:
        there are many tasks, or no memory for T gradients, and all losses should fall evenly.

    Avoid when:
        a second forward pass after the step is not possible: without `update` the weights do
        not move.
    """

    paper = "arXiv 2306.03792"
    cost = "1 backward pass, 1 forward pass after it"
    keeps = "xi, its Adam moments, last losses"

    xi: Tensor
    first: Tensor
    second: Tensor
    before: Tensor
    missed: Tensor  # steps that a task's xi has not taken part in
    steps: Tensor
    min_losses: Tensor

    def __init__(
        self,
        *,
        lr: float = 0.025,
        gamma: float = 1e-3,
        min_losses: Numbers | float = 0.0,
    ) -> None:
        super().__init__()
        for name, value in (("lr", lr), ("gamma", gamma)):
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name}={value}: it must be finite and at least 0")
        self.lr = float(lr)
        self.gamma = float(gamma)
        self.register_numbers("min_losses", min_losses)
        for name in ("xi", "first", "second", "before", "missed"):
            self.register_state(name, 0.0)
        self.register_buffer("steps", torch.tensor(0, dtype=torch.int64))

    def forward(self, losses: Tensor) -> Tensor:
        gap = self._gap(losses)
        with torch.no_grad():
            self.before.copy_(torch.where(self.taking_part(), gap.log(), torch.nan))
            z = self.softmax(self.xi)
            c = 1 / (z / gap).sum()
            c = torch.where(c.isinf(), 0.0, c)  # no task takes part
        return c * (z * gap.log()).sum()

    @torch.no_grad()
    def update(
        self, losses: Mapping[str, Tensor | None] | Sequence[Tensor | None] | Tensor
    ) -> None:
        """Moves xi by what the step did to the losses. After a step of one task xi stays.

        Args:
            losses: T losses of the same batch after the optimizer's step, as `backward` took them:
                by name, or in the same order; None for a task that had no data.

        Raises:
            ValueError: no step came before, or losses are not those of its tasks.
        """
        if len(self.before) == 0:
            raise ValueError(
                "FAMO.update has no step to compare with: call it after backward(losses) and the "
                "optimizer's step()"
            )
        seats = list(range(len(self.before))) if self._last is None else self._last
        if isinstance(losses, Mapping):
            found = [losses.get(self.task_names[seat]) for seat in seats if self.task_names]
        else:
            found = [loss for loss in losses if loss is not None]
        values = [loss for loss in found if loss is not None]
        if len(values) != len(seats):
            raise ValueError(
                f"FAMO.update got {len(values)} losses of the {len(seats)} tasks of the last step: "
                "pass the losses that backward took"
            )
        if not seats:
            return
        with self.for_tasks(self.task_names or len(self.before), seats) as step:
            self._move(torch.stack([values[seats.index(seat)] for seat in step.order]))

    def _move(self, losses: Tensor) -> None:
        """An Adam step of xi."""
        delta = self.before - self._gap(losses.detach()).log()
        part = self.exclude(self.before.isnan())
        z, delta = self.softmax(self.xi), torch.where(part, delta, 0.0)
        grad = z * (delta - (z * delta).sum()) + self.gamma * self.xi
        steps = self.steps + 1
        own = (steps - self.missed).clamp_min(1)
        first = _BETAS[0] * self.first + (1 - _BETAS[0]) * grad
        second = _BETAS[1] * self.second + (1 - _BETAS[1]) * grad.square()
        root = (second / (1 - _BETAS[1] ** own)).sqrt() + _EPS
        xi = self.xi - self.lr * first / (1 - _BETAS[0] ** own) / root
        missed = self.missed + torch.where(part.any() & self.fine(), ~part, False)
        self.remember(xi=xi, first=first, second=second, steps=steps)
        self.missed.copy_(missed)
        self._missed_by_absent = torch.where(part.any() & self.fine(), 1.0, 0.0)

    def _fill_of(self, name: str) -> float | Tensor:
        """A new task has missed all steps of xi that there were."""
        return self.steps.double() if name == "missed" else super()._fill_of(name)

    def _gap(self, losses: Tensor) -> Tensor:
        """D, and 1 in the place of each that has no logarithm."""
        gap = self.admit(losses) - self.min_losses + _SHIFT
        return torch.where(self.exclude(gap.detach() <= 0), gap, 1.0)

    def extra_repr(self) -> str:
        return f"lr={self.lr}, gamma={self.gamma}"
