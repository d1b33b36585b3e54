"""AutoStep: the learning rate from a quadratic fit of the loss along the optimizer's own step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_PROBES = (-1.0, 1.0, 2.0)  # in steps, from the parameters before the step


class AutoStep:
    r"""Every few steps, moves the learning rate towards the best length of the step (GeN).

    .. math::
        L(w - x p) \approx L(w) - b x + \tfrac{1}{2} a x^2, \qquad x^* = \frac{b}{a}, \qquad \eta
        \leftarrow \eta \, (0.9 + 0.1 \operatorname{clip}(x^*, \tfrac{1}{2}, 2))

    p is the step that the optimizer has taken, so any optimizer works, and it is taken once: its
    moments and counts advance as without AutoStep. (The published code, gen-optim 0.1.1, takes a
    second step to learn p.) The loss is evaluated without gradients at x = 0, -1, 1, 2, a and b are
    fitted by least squares, and the rate stays unless a > 0, b > 0 and R^2 > 0.99. With gen-optim's
    three points x = -1, 0, 1 any values fit; the point x = 2, which is ours, makes R^2 a test. Then
    the parameters are what the optimizer made of them, bit for bit. NGDiff (arXiv 2410.22086) uses
    the rule with the retain loss.

        auto = AutoStep(optimizer, lambda: retain_loss(model, held_out), every=10)
        optimizer.backward(losses)
        auto.step()  # in place of optimizer.step()

    Args:
        optimizer: any; the `lr` of all its groups is multiplied by one factor.
        closure: returns the loss of one batch, a scalar. It runs four times in an adjusting step,
            under no_grad, and must use the same batch each time. The random numbers of torch are
            the same each time, and go on afterwards as if it had not run. Put layers that keep
            statistics (BatchNorm) into eval mode inside it.
        every: one of so many steps adjusts the rate, at least 1. gen-optim asks for 4 or more.

    An adjusting step holds two copies of the parameters and waits for the device.
    """

    def __init__(
        self, optimizer: Any, closure: Callable[[], Tensor | float], every: int = 10
    ) -> None:
        if not (isinstance(every, int) and every >= 1):
            raise ValueError(f"every={every}: give a positive integer")
        self.optimizer = optimizer
        self.closure = closure
        self.every = every
        self.steps = 0

    def step(self) -> float | None:
        """Takes the optimizer's step; returns x* if the rate has moved, else None."""
        self.steps += 1
        if self.steps % self.every:
            self.optimizer.step()
            return None
        params = [p for group in self.optimizer.param_groups for p in group["params"]]
        before = [p.detach().clone() for p in params]
        self.optimizer.step()
        best = best_length(self._losses(params, before))
        if best is not None:
            for group in self.optimizer.param_groups:
                group["lr"] *= 0.9 + 0.1 * min(max(best, 0.5), 2.0)
        return best

    @torch.no_grad()
    def _losses(self, params: list[Tensor], before: list[Tensor]) -> list[float]:
        """The losses before the step and at the probes; the parameters are unchanged."""
        after = [p.detach().clone() for p in params]
        devices = {p.device for p in params if p.device.type == "cuda"}
        found = []
        try:
            for x in (0.0, *_PROBES):
                for p, old, new in zip(params, before, after, strict=True):
                    p.copy_(new if x == 1 else old + x * (new - old))
                with torch.random.fork_rng(devices=list(devices)):
                    found.append(float(self.closure()))
        finally:
            for p, new in zip(params, after, strict=True):
                p.copy_(new)
        return found

    def state_dict(self) -> dict[str, int]:
        """The count of steps; the rate is in the optimizer's state."""
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Restores the count of steps."""
        self.steps = int(state["steps"])


def best_length(losses: list[float]) -> float | None:
    """b / a of the fit to the losses at 0 and at the probes; None if it is rejected."""
    x = torch.tensor(_PROBES, dtype=torch.float64)
    y = torch.tensor(losses[1:], dtype=torch.float64) - losses[0]
    if not y.isfinite().all():
        return None
    design = torch.stack([x.square() / 2, -x], dim=1)
    (a, b) = torch.linalg.lstsq(design, y[:, None]).solution[:, 0].tolist()
    rest = (design @ torch.tensor([a, b], dtype=torch.float64) - y).square().sum()
    spread = torch.cat([y, y.new_zeros(1)])
    total = (spread - spread.mean()).square().sum()
    fits = float(total) > 0 and float(rest / total) < 0.01
    return b / a if a > 0 and b > 0 and fits else None
