"""A method's state and given numbers for each task, and the names that they belong to.

A method has one order of its tasks, in which their names first appeared. `TaskStep` puts a step's
tasks into that order, so state, given numbers and random draws belong to the names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from mtlkernels.methods.numbers import decoded, encoded, pick

NAMES = "task_names"  # the entry of a state dict
NEWER = (
    NAMES,
    "missed",
    "row_parameters",
)  # entries that state dicts of earlier versions do not have

# How an entry of the state depends on the others of its vector:
# "own": not at all; a new task starts with the buffer's `fill`.
# "simplex", "count": it is a share of a sum, which is 1 or the number of tasks. The present tasks
#     of a step divide their part of the sum among themselves; a new task starts with the mean.
# "logits": the logarithm of a share of 1.
Kind = Literal["own", "simplex", "count", "logits"]


class KeepsTasks(nn.Module):
    """The base of all methods.

    Attributes:
        task_names: the tasks' names in the order of the state; () while only positions are known.
        alone_is_plain: whether a step with one task of several is plain training, without the
            method.
        growing: prefixes of the names of buffers that the first call creates; each has one entry
            for each task.
    """

    growing: ClassVar[tuple[str, ...]] = ()
    alone_is_plain: ClassVar[bool] = True
    _learned: ClassVar[tuple[str, ...]] = ()  # parameters with one entry for each task
    _changes_first: ClassVar[bool] = False  # whether its state changes before the backward pass

    def __init__(self) -> None:
        super().__init__()
        self._num_tasks = 0  # of all tasks, in a step with absent tasks
        # What a step with absent tasks adds to their `missed`.
        self._missed_by_absent: Tensor | None = None
        self._initial: dict[str, Tensor | None] = {}
        self._lazy: dict[str, tuple[Kind, float]] = {}
        self._given: list[str] = []  # buffers of numbers that the user gave
        self._given_names: tuple[str, ...] = ()  # if they were given by name
        self._order_changes = 0  # how often anything but a step changed the names
        self._met = False  # whether a step has had these names
        self._last: list[int] | None = None  # positions of the last step's tasks, in its order
        self._present: list[int] | None = None  # positions of the present tasks, if some are absent
        self._step_names: tuple[str, ...] = ()  # names that the method knows in the present step
        self.task_names: tuple[str, ...] = ()

    def register_buffer(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
        """As in nn.Module; `reset` restores the first value."""
        super().register_buffer(name, tensor, persistent)
        if not self._grows(name) and name not in self._initial:  # assignments call this too
            self._initial[name] = None if tensor is None else tensor.detach().clone()

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """As in nn.Module; `reset` restores the first value."""
        super().register_parameter(name, param)
        if name not in self._initial:
            self._initial[name] = None if param is None else param.detach().clone()

    def register_lazy(self, name: str, kind: Kind = "own", fill: float = 0.0) -> None:
        """Adds a float64 buffer, in each dimension one entry per task, empty until first filled."""
        self._lazy[name] = (kind, fill)
        self.start_with(name, torch.empty(0, dtype=torch.float64))

    def start_with(self, name: str, tensor: Tensor) -> None:
        """Gives a buffer another first value than an earlier `register_...` did."""
        self._initial.pop(name, None)
        self.register_buffer(name, tensor)

    def register_given(
        self, name: str, numbers: Tensor, names: tuple[str, ...] = (), persistent: bool = False
    ) -> None:
        """Adds a buffer of given numbers, one per task or one for all; by default not saved.

        names: the tasks' names, if the numbers were given by name, see `numbers_of`.
        """
        self._given.append(name)
        self.register_buffer(name, self.in_given_order(name, numbers, names), persistent)

    def in_given_order(self, name: str, numbers: Tensor, names: tuple[str, ...]) -> Tensor:
        """Puts numbers given by name into the order of earlier ones; the first set the order."""
        if names:
            numbers = self.in_own_order(name, numbers, names)
            self._given_names = self.task_names
        return numbers

    def in_own_order(self, name: str, numbers: Tensor, names: tuple[str, ...]) -> Tensor:
        """Puts numbers given by name into the order of the state, or sets it if it has no names.

        Raises:
            ValueError: the names are not those of the state.
        """
        if not names:
            return numbers
        if not self.task_names:
            self.task_names = names
            self._order_changes += 1
        if set(names) != set(self.task_names):
            raise ValueError(
                f"{name} names {', '.join(names)}, but the tasks of this {type(self).__name__} are "
                f"{', '.join(self.task_names)}: name these"
            )
        return pick(numbers, [names.index(task) for task in self.task_names])

    def place_of(self, task: int | str, num_tasks: int, argument: str) -> int | None:
        """Where one task is among those of a step; None if it is absent.

        Args:
            task: its name, or its position in the order of the method.
            num_tasks: of the step.
            argument: what the task was given as, for the error.

        Raises:
            ValueError: there is no such task.
        """
        names = self._step_names or self.task_names
        if isinstance(task, str) and task not in names:
            known = f"the tasks are {', '.join(names)}" if names else "the losses have no names"
            raise ValueError(f"{argument}={task!r}: {known}")
        place = names.index(task) if isinstance(task, str) else task
        count = num_tasks if self._present is None else self._num_tasks
        if place >= count:
            raise ValueError(f"{argument}={task}: there are {count} tasks, counted from 0")
        if self._present is None:
            return place
        return self._present.index(place) if place in self._present else None

    @torch.no_grad()
    def reset(self) -> None:
        """Restores the method's first state, without the tasks' names.

        Learned parameters (`parameters()`) get their first values again, in place; an optimizer's
        state for them does not change.
        """
        for part in members(self):
            part._reset()

    def _reset(self) -> None:
        for name in [name for name in self._buffers if self._grows(name)]:
            delattr(self, name)
        for name, first in self._initial.items():
            now = getattr(self, name)
            if isinstance(now, nn.Parameter):
                now.copy_(now if first is None else first)
            else:
                device = None if now is None else now.device
                setattr(self, name, None if first is None else first.to(device, copy=True))
        self.task_names, self._met, self._last = self._given_names, False, None
        self._order_changes += 1

    def _grows(self, name: str) -> bool:
        return bool(self.growing) and name.startswith(self.growing)

    def _task_buffers(self) -> list[str]:
        """Names of the state's buffers that have one entry per task now."""
        long = [name for name in self._buffers if self._grows(name)]
        return [name for name in (*self._lazy, *long) if len(getattr(self, name))]

    def _vectors(self) -> list[str]:
        """Names of the given numbers with one entry per task."""
        return [name for name in self._given if getattr(self, name).dim() == 1]

    def _fixed_tasks(self) -> int:
        """For how many tasks there are given or learned numbers; 0 if for any number."""
        names = (*self._vectors(), *self._learned)
        return max([0, *(len(getattr(self, name)) for name in names)])

    def _known_tasks(self) -> int:
        """How many tasks the state has; 0 if there is none yet."""
        state = [len(getattr(self, name)) for name in self._task_buffers()]
        return max([self._fixed_tasks(), *state])

    def _select(self, name: str, positions: Sequence[int]) -> Tensor:
        """A buffer's entries of some tasks."""
        found = getattr(self, name)
        for dim in range(1 if self._grows(name) else found.dim()):
            found = pick(found, positions, dim)
        return found

    def _put_in_order(self, names: tuple[str, ...]) -> None:
        """Puts state and numbers into another order of the same names."""
        order = [self.task_names.index(name) for name in names]
        for name in self._vectors():
            setattr(self, name, self._select(name, order))
        for name in self._task_buffers():
            setattr(self, name, self._grown(name, len(names)))
            setattr(self, name, self._select(name, order))
        self.task_names = names

    def _fill_of(self, name: str) -> float | Tensor:
        """The first value of a new task's entry of a buffer, if it is not a share of a sum."""
        return self._lazy[name][1] if name in self._lazy else 0.0

    def _grown(self, name: str, num_tasks: int) -> Tensor:
        """A buffer with entries for new tasks after those that it has."""
        now: Tensor = getattr(self, name)
        kind = self._lazy.get(name, ("own", 0.0))[0]
        old = len(now)
        if old == num_tasks:
            return now
        if kind == "logits":
            fill_with = now.logsumexp(dim=0) - torch.tensor(float(old)).log()
        else:
            start = self._fill_of(name) if kind == "own" else now.mean()
            fill_with = torch.as_tensor(start, dtype=now.dtype, device=now.device)
        shape = [num_tasks, *now.shape[1:]] if self._grows(name) else [num_tasks] * now.dim()
        full = fill_with.to(now).expand(shape).clone()
        full[tuple(slice(0, n) for n in now.shape)] = now
        if kind == "simplex":
            return full / full.sum()
        return full.log_softmax(dim=0) if kind == "logits" else full

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        own = [*self._buffers.items(), *self._parameters.items()]
        saved = [x for name, x in own if x is not None and (name in self._lazy or x.numel())]
        if saved:  # otherwise the method does not depend on the tasks' order
            destination[prefix + NAMES] = encoded(self.task_names, saved[0].device)

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """As in nn.Module. A state that was saved without names has positions only.

        Raises:
            ValueError: given numbers of this method belong to other tasks; nothing was loaded.
        """
        self.check_state(state_dict)
        return super().load_state_dict(state_dict, strict, assign)

    def check_state(self, state_dict: Mapping[str, Any]) -> None:
        """Raises ValueError if a saved state has other tasks than this method's given numbers."""
        for name, part in self.named_modules():
            if isinstance(part, KeepsTasks):
                prefix = f"{name}." if name else ""
                part._check_saved(decoded(state_dict.get(prefix + NAMES)))

    def _check_saved(self, names: tuple[str, ...]) -> None:
        fixed, own = self._fixed_tasks(), self.task_names
        if not (fixed and names):
            return
        if (own and set(own) != set(names)) or fixed != len(names):
            here = f"those of {', '.join(own)}" if own else f"{fixed} of them"
            raise ValueError(
                f"the state was saved for the tasks {', '.join(names)}, and this "
                f"{type(self).__name__} has numbers for each task, {here}: give it the numbers of "
                "the same tasks. Nothing was loaded"
            )

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Mapping[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        own = dict(state_dict)
        names = decoded(own.pop(prefix + NAMES, None))
        try:
            self._check_saved(names)
        except ValueError as error:
            error_msgs.append(str(error))
            return
        if names and self.task_names:
            order = [self.task_names.index(name) for name in names if name in self.task_names]
            for name in self._vectors():
                setattr(self, name, self._select(name, order))
        self.task_names = names or self._given_names
        self._met, self._last = bool(names), None
        self._order_changes += 1
        saved_lazy = [own[prefix + name] for name in self._lazy if prefix + name in own]
        sizes = [len(x) for x in saved_lazy if x.dim()]
        for name in self._lazy:
            if name in NEWER and prefix + name not in own and sizes:
                own[prefix + name] = torch.zeros(sizes[0], dtype=torch.float64)
            saved, have = own.get(prefix + name), getattr(self, name)
            if (
                isinstance(saved, Tensor) and saved.dim() == 0
            ):  # one count for all tasks, as earlier versions saved
                own[prefix + name] = saved = saved.double().expand(max([0, *sizes])).clone()
            if isinstance(saved, Tensor) and saved.shape != have.shape:
                setattr(self, name, have.new_empty(saved.shape))
        super()._load_from_state_dict(
            own, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )


def members(method: nn.Module) -> list[KeepsTasks]:
    """A method and the methods inside it."""
    return [part for part in method.modules() if isinstance(part, KeepsTasks)]
