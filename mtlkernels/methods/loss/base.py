"""The base class of loss methods, which make one scalar of the losses."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from mtlkernels.methods.base import (
    INVALID_LOSS,
    NON_FINITE,
    Method,
)
from mtlkernels.methods.numbers import Numbers, numbers_of
from mtlkernels.methods.tasks import Kind


class LossMethod(Method):
    """A rule that turns T losses into one; the weight of task t is d scalar / d L_t.

    A subclass only has to define `forward`. Learned numbers are `nn.Parameter`s: add
    `method.parameters()` to the optimizer. A loss method is a differentiable module and also works
    alone: `method(torch.stack(losses)).backward()`.

    A loss that the rule cannot use (for example a loss <= 0 of which it needs the logarithm) takes
    no part in its step: its weight is 0, its state does not change, the rule is applied to the
    other tasks, and its status is INVALID_LOSS. If no task is left, all weights are 0. A loss that
    is not finite makes the scalar and all weights NaN, so that a gradient scaler skips the step,
    and changes no state.
    """

    family = "loss"
    cost = "1 backward pass"
    _changes_first = True

    @abstractmethod
    def forward(self, losses: Tensor) -> Tensor:
        """Returns the scalar of one step.

        Args:
            losses: (T) floating-point; `mtlkernels.backward` gives float64.

        Returns:
            Scalar, differentiable in the losses and in the method's parameters.
        """

    def register_state(self, name: str, fill: float, kind: Kind = "own") -> None:
        """Adds a float64 buffer of one number per task, created and filled at the first losses."""
        self.register_lazy(name, kind, fill)

    def register_numbers(self, name: str, numbers: Numbers | float) -> None:
        """Adds a buffer of given numbers, one per task or one for all; not part of the state."""
        given, names = numbers_of(numbers)
        if given.dim() > 1 or not given.isfinite().all():
            raise ValueError(f"{name}={numbers}: give one finite number, or one per task")
        self.register_given(name, given, names)

    def admit(self, losses: Tensor, above: float | None = None) -> Tensor:
        """Checks the losses, sets the status and sizes the state.

        Args:
            losses: (T) floating-point.
            above: a bound that each loss must exceed.

        Returns:
            (T) float64: the losses, with a constant 1 for each that takes no part; all NaN if one
            is not finite.

        Raises:
            ValueError: not a vector of floating-point numbers, or not as many as before.
        """
        if losses.dim() != 1 or len(losses) == 0 or not losses.is_floating_point():
            raise ValueError(
                f"losses must be a floating-point vector with one entry per task, got "
                f"{losses.dtype} of shape {tuple(losses.shape)}"
            )
        self._fit(len(losses), losses.device)
        seen = losses.detach()
        status = torch.where(seen.isfinite(), 0, NON_FINITE)
        if above is not None:
            status = status | torch.where(seen <= above, INVALID_LOSS, 0)
        self.status = status
        whole = torch.where(self.fine(), 1.0, torch.nan)
        return torch.where(self.taking_part(), losses.double(), 1.0) * whole

    def fine(self) -> Tensor:
        """Whether all of the last losses were finite; a scalar on their device."""
        return ((self.status & NON_FINITE) == 0).all()

    def taking_part(self) -> Tensor:
        """(T) which of the last losses take part: all but the invalid ones; all in a bad step."""
        return ((self.status & INVALID_LOSS) == 0) | ~self.fine()

    def exclude(self, invalid: Tensor) -> Tensor:
        """Marks losses that `admit` accepted as invalid; returns (T) which take part then."""
        self.status = self.status | torch.where(invalid & self.fine(), INVALID_LOSS, 0)
        return self.taking_part()

    def softmax(self, scores: Tensor) -> Tensor:
        """(T) the softmax of the scores of those tasks that take part, 0 for the others."""
        part = self.taking_part()
        only = torch.where(part | ~part.any(), scores, -torch.inf)
        return torch.where(part, only.softmax(dim=0), 0.0)

    @torch.no_grad()
    def remember(self, **state: Tensor) -> None:
        """Writes new values into the state in place, if the last losses were finite.

        A number per task changes if the task takes part, a number for all if any task does.
        """
        moves = self.fine() & self.taking_part()
        for name, new in state.items():
            buffer = getattr(self, name)
            buffer.copy_(torch.where(moves if buffer.dim() else moves.any(), new, buffer))

    def _fit(self, num_tasks: int, device: torch.device) -> None:
        for name, param in self._parameters.items():
            if param is not None and param.device != device:
                raise ValueError(f"{name} is on {param.device}, the losses on {device}: use .to()")
        for name, buffer in list(self._buffers.items()):
            if buffer is not None and buffer.device != device:
                setattr(self, name, buffer.to(device))
        for name in self._given:
            given = getattr(self, name)
            if given.dim() == 1 and len(given) != num_tasks:
                raise ValueError(f"{name} has {len(given)} numbers for {num_tasks} losses")
        for name, (_, fill) in self._lazy.items():
            have = len(getattr(self, name))
            if have == 0:
                fresh = torch.full((num_tasks,), fill, dtype=torch.float64, device=device)
                setattr(self, name, fresh)
            elif have != num_tasks:
                raise ValueError(
                    f"this {type(self).__name__} has the state of {have} tasks and got "
                    f"{num_tasks} losses: make a new one"
                )
