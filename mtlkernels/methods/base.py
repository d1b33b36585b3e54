"""The base class of all methods."""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mtlkernels.methods.task_step import TaskStep, plan_of, put_in_order, set_names
from mtlkernels.methods.tasks import KeepsTasks, members

# Flags of a task's status; mtlkernels.Status names them for people.
NON_FINITE, ZERO_GRADIENT, STATIONARY, NO_SOLUTION = 1, 2, 4, 16
INVALID_LOSS, ILL_CONDITIONED, INVALID_GRAM = 32, 64, 128


class Method(KeepsTasks, ABC):
    """Base of all families. Buffers are a method's state, so `state_dict` and `.to` include it.

    Attributes:
        family: "Gram", "loss" or "row", the input that it uses.
        paper: its source, for example "arXiv 2001.06782"; "" without one.
        cost: the backward passes of a step with T losses.
        keeps: its state from step to step.
        status: (T) int64 flags of `mtlkernels.Status` for the last call; empty before the first.
    """

    family: ClassVar[str]
    paper: ClassVar[str] = ""
    cost: ClassVar[str]
    keeps: ClassVar[str] = "nothing"

    status: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.status = torch.empty(0, dtype=torch.int64)

    def __setattr__(self, name: str, value: Any) -> None:
        """Sets the status without nn.Module, which would take longer than a small solve."""
        if name == "status":
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Moves the state, but float64 stays float64: `half()` of a model must not round it."""

        def moved(tensor: Tensor) -> Tensor:
            result = fn(tensor)
            if tensor.dtype != torch.float64 or isinstance(tensor, nn.Parameter):
                return result
            return result if result.dtype == tensor.dtype else tensor.to(result.device)

        return super()._apply(moved, recurse)

    def for_tasks(
        self, names: Sequence[str] | int, present: Sequence[int] | None = None
    ) -> TaskStep:
        """Begins a step with some tasks, in the method's order: see `TaskStep`.

        Args:
            names: T names; or T, if the tasks have positions only.
            present: positions of those that take part; by default all.

        Raises:
            ValueError: given numbers, or the state, belong to other tasks.
        """
        if torch.compiler.is_compiling() and self._order_changes >= 0:  # which guards on it
            return TaskStep(self, self._plan_while_tracing(names, present), named=True)
        return TaskStep(self, plan_of(self, names, present))

    def _plan_while_tracing(
        self, names: Sequence[str] | int, present: Sequence[int] | None
    ) -> tuple[Any, ...]:
        """The plan of a step that torch.compile traces; the method gets its names here and now.

        A constant of the graph, so that no guard on the names compiles the second step again.
        """
        plan = plan_of(self, names, present)
        parts = members(self)
        put_in_order(parts, plan.names)
        set_names(parts, plan.names)
        return tuple(plan)

    _plan_while_tracing._dynamo_marked_constant = True  # type: ignore[attr-defined]

    def _reset(self) -> None:
        super()._reset()
        self.status = torch.empty(0, dtype=torch.int64)


def check_reduction(reduction: str) -> None:
    """Raises ValueError unless reduction is "sum" or "mean"."""
    if reduction not in ("sum", "mean"):
        raise ValueError(f'reduction={reduction!r}: choose "sum" or "mean"')
