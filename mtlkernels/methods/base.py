"""What a method is: T gradients' inner products to T weights, T losses to one, or T rows to one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from mtlkernels.methods.numbers import Numbers, numbers_of
from mtlkernels.methods.task_step import TaskStep, plan_of, put_in_order, set_names
from mtlkernels.methods.tasks import KeepsTasks, Kind, members

# Flags of a task's status; mtlkernels.Status names them for people.
NON_FINITE, INVALID_LOSS = 1, 32


class Method(KeepsTasks, ABC):
    """Base of all families. Buffers are a method's state, so `state_dict` and `.to` include it.

    Attributes:
        family: "Gram", "loss" or "row", the input that it uses.
        paper: its source, "arXiv 2001.06782" for example; "" without one.
        cost: of a step, for T losses.
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
        """A step with some tasks, in the method's order: see `TaskStep`.

        Args:
            names: T names; or T, where the tasks have positions only.
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


class GramMethod(Method):
    """A rule that turns the Gram matrix of T gradients into T weights; d = sum_t w_t g_t.

    A method of one's own only has to define `forward`; where it leaves `status` alone, the report
    says what K says.

    Attributes:
        own_head_weights: whether `head_weights` answers anything but the weights.
    """

    family = "Gram"
    cost = "T backwards"
    own_head_weights: bool = False

    def __call__(self, gram: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Runs `forward` with K in float64.

        A method also takes the float32, bfloat16 or float16 K of another library. It cannot know
        that such a K is only exact to 6e-8, 4e-3 or 5e-4 of |g_i| |g_j|: it solves for the given
        numbers, and flags only what float64 cannot resolve. Where gradients nearly cancel or are
        nearly parallel, use `ops.gram`.
        """
        if not gram.is_floating_point():
            raise RuntimeError(f"a Gram matrix is float64, this one is {gram.dtype}: use ops.gram")
        gram = gram.double()
        weights: Tensor = super().__call__(gram, *args, **kwargs)
        return weights

    @abstractmethod
    def forward(self, gram: Tensor, losses: Tensor | None = None) -> Tensor:
        """Weights for one step.

        Args:
            gram: (T, T) float64, K_ij = <g_i, g_j>; symmetric, as `ops.gram` makes it.
            losses: (T) the tasks' losses, for the methods that use them.

        Returns:
            (T) float64 on gram's device.
        """

    def head_weights(self, gram: Tensor, losses: Tensor | None, weights: Tensor) -> Tensor:
        """What `weight_heads=True` multiplies the gradients of heads by: the weights.

        A method whose published code has another rule for heads overrides it.

        Args:
            gram, losses: as for `forward`.
            weights: (T), what `forward` has answered.

        Returns:
            (T) float64 on gram's device.
        """
        return weights


class LossMethod(Method):
    """A rule that turns T losses into one; the weight of task t is d scalar / d L_t.

    A method of one's own only has to define `forward`. What it learns is an `nn.Parameter`: give
    `method.parameters()` to the optimizer beside the model's. Being a differentiable module, it
    also works without the rest of the library: `method(torch.stack(losses)).backward()`.

    A loss that the rule cannot take, for example one <= 0 of which it would take the logarithm,
    takes no part in its step: its weight is 0, its state stays as it was, the rule is that of the
    other tasks alone, and the status says INVALID_LOSS. Where no task is left, all weights are 0.
    A loss that is not finite makes the scalar and all weights NaN, as a gradient scaler expects of
    a bad step; then no state changes.
    """

    family = "loss"
    cost = "1 backward"
    _changes_first = True

    @abstractmethod
    def forward(self, losses: Tensor) -> Tensor:
        """The scalar of one step.

        Args:
            losses: (T) floating-point; `mtlkernels.backward` gives float64.

        Returns:
            Scalar, differentiable in the losses and in the method's parameters.
        """

    def register_state(self, name: str, fill: float, kind: Kind = "own") -> None:
        """A float64 buffer of one number a task, made and filled when the first losses say T."""
        self.register_lazy(name, kind, fill)

    def register_numbers(self, name: str, numbers: Numbers | float) -> None:
        """A buffer of one given number a task, or one for all; no part of the state."""
        given, names = numbers_of(numbers)
        if given.dim() > 1 or not given.isfinite().all():
            raise ValueError(f"{name}={numbers}: give one finite number, or one a task")
        self.register_given(name, given, names)

    def admit(self, losses: Tensor, above: float | None = None) -> Tensor:
        """Checks the losses, sets the status and sizes the state.

        Args:
            losses: (T) floating-point.
            above: what each loss has to exceed.

        Returns:
            (T) float64: the losses, and a constant 1 in the place of each that takes no part; all
            NaN where one is not finite.

        Raises:
            ValueError: not a vector of floating-point numbers, or not as many as before.
        """
        if losses.dim() != 1 or len(losses) == 0 or not losses.is_floating_point():
            raise ValueError(
                f"losses must be a floating-point vector with one entry a task, got "
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
        """Marks losses that `admit` let pass as invalid; (T) which take part then."""
        self.status = self.status | torch.where(invalid & self.fine(), INVALID_LOSS, 0)
        return self.taking_part()

    def softmax(self, scores: Tensor) -> Tensor:
        """(T) the softmax of the scores of those tasks that take part, 0 for the others."""
        part = self.taking_part()
        only = torch.where(part | ~part.any(), scores, -torch.inf)
        return torch.where(part, only.softmax(dim=0), 0.0)

    @torch.no_grad()
    def remember(self, **state: Tensor) -> None:
        """Writes new values into the state in place, where the last losses were fine.

        A number a task moves where the task takes part, a number for all where any of them does.
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
                    f"{num_tasks} losses: use a fresh one"
                )


class RowStep(NamedTuple):
    """The result of a row method.

    Attributes:
        directions: a flat direction for each gradient list, as `ops.combine` lays it out.
        weights: (T) float64, where the directions are a weighted sum of T rows; else None.
        gram: (T, T) float64, inner products of the rows that the weights belong to, where the
            method has them; else None.
        head_weights: (T) float64, what `weight_heads=True` multiplies the gradients of heads by,
            where the rows are not gradients of the losses themselves; None is the weights.
    """

    directions: list[Tensor]
    weights: Tensor | None = None
    gram: Tensor | None = None
    head_weights: Tensor | None = None


class RowMethod(Method):
    """A rule for the gradients themselves: by element, or with a state of their size.

    A method of one's own only has to define `forward`; where it leaves `status` alone, the report
    says what its Gram matrix says, or without one what the losses say.

    Attributes:
        weighs: whether its answers have weights, which `weight_heads=True` needs.
    """

    family = "row"
    cost = "T backwards"
    weighs: ClassVar[bool] = False

    @abstractmethod
    def forward(
        self,
        lists: Sequence[Sequence[Tensor]],
        num_tasks: int,
        losses: Tensor | None = None,
    ) -> RowStep:
        """The directions of one step.

        Args:
            lists: one gradient list, T * P tensors as the ops take them, for each dtype and device
                of the parameters; at least one.
            num_tasks: T.
            losses: (T) the tasks' losses, for the methods that use them.
        """


def check_reduction(reduction: str) -> None:
    """Raises ValueError unless reduction is "sum" or "mean"."""
    if reduction not in ("sum", "mean"):
        raise ValueError(f'reduction={reduction!r}: choose "sum" or "mean"')
