"""What the three families of methods are to the rest: a method comes as an argument."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol, TypeGuard

from torch import Tensor, nn


class Weighting(Protocol):
    """What a Gram method is to this file; `status` is its word on the last call."""

    status: Tensor

    def __call__(self, gram: Tensor, losses: Tensor | None = None) -> Tensor: ...


class KeptWeighting(Weighting, Protocol):
    """What a Gram method is that may know its weights before anything is measured."""

    def kept_weights(self, tasks: tuple[str, ...], read: bool = False) -> Tensor | None: ...
    def count(self, tasks: tuple[str, ...]) -> None: ...


class LossWeighting(Protocol):
    """What a loss method is: T losses in, a scalar that is differentiable in them out."""

    family: str
    status: Tensor

    def __call__(self, losses: Tensor) -> Tensor: ...

    def parameters(self) -> Iterator[nn.Parameter]: ...


class RowAnswer(Protocol):
    """What a row method answers: flat directions, and weights and a Gram matrix or None."""

    @property
    def directions(self) -> list[Tensor]: ...
    @property
    def weights(self) -> Tensor | None: ...
    @property
    def gram(self) -> Tensor | None: ...


class RowWeighting(Protocol):
    """What a row method is: gradient lists in, flat directions out."""

    family: str
    weighs: bool
    status: Tensor

    def __call__(
        self, lists: Sequence[Sequence[Tensor]], num_tasks: int, losses: Tensor | None = None
    ) -> RowAnswer: ...


class TaskStep(Protocol):
    """A step of some of a method's tasks: in the context, the method's state is theirs.

    Attributes:
        order: positions, among the step's tasks, of those that take part, in the method's order.
        alone: whether it is one of several, so that the step is plain training.
    """

    order: tuple[int, ...]
    alone: bool


@dataclass
class _AsGiven:
    """The step of a method that knows nothing of tasks' names."""

    order: tuple[int, ...]
    alone: bool


def task_step(
    method: object, names: Sequence[str] | int, present: Sequence[int] | None = None
) -> AbstractContextManager[TaskStep]:
    """A step of the tasks that are present; see `Method.for_tasks`.

    Args:
        method: any method.
        names: T names; or T, where the tasks have positions only.
        present: positions of those that take part; by default all.
    """
    if hasattr(method, "for_tasks"):
        step: AbstractContextManager[TaskStep] = method.for_tasks(names, present)
        return step
    count = names if isinstance(names, int) else len(names)
    chosen = tuple(range(count) if present is None else present)
    return nullcontext(_AsGiven(chosen, len(chosen) == 1 and count > 1))


def tell_parameters(
    method: object, places: list[list[int]], params: Mapping[int, Tensor] | None = None
) -> None:
    """Says to a method that keeps averages of gradients which parameters they will be of.

    Args:
        method: any method.
        places: for each gradient list, positions of its parameters in the list that was given.
        params: the parameters by position, where they are known.
    """
    if hasattr(method, "for_parameters"):
        method.for_parameters(places, params)


def tell_parts(method: object, num_parts: int) -> None:
    """Says to a method that weighs each part on its own how many parts there are."""
    if hasattr(method, "for_parts"):
        method.for_parts(num_parts)


AnyMethod = Weighting | RowWeighting | LossWeighting


def weighs_losses(method: object) -> TypeGuard[LossWeighting]:
    """Whether a method looks at the losses alone, so that one backward does."""
    return getattr(method, "family", None) == "loss"


def keeps_weights(method: object) -> TypeGuard[KeptWeighting]:
    """Whether a method may know its weights before anything is measured."""
    return hasattr(method, "kept_weights")


def takes_rows(method: object) -> TypeGuard[RowWeighting]:
    """Whether a method looks at the gradients themselves."""
    return getattr(method, "family", None) == "row"


def check_method(method: object) -> None:
    """Raises TypeError unless method is an object that can be called; its class is not one."""
    if isinstance(method, type) or not callable(method):
        given = "the class" if isinstance(method, type) else "a"
        name = method.__name__ if isinstance(method, type) else type(method).__name__
        raise TypeError(f"method is {given} {name}: give a method, for example mtlkernels.PCGrad()")
