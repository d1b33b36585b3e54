"""What a method remembers of its tasks: state, given numbers and the names they belong to.

A method keeps one order of its tasks, that of the names it has met. A step's tasks are put into
that order (`TaskStep`), so state, given numbers and random draws follow the names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from mtlkernels.methods.numbers import decoded, encoded, pick

NAMES = "task_names"  # the entry of a state dict
NEWER = (NAMES, "missed", "row_parameters")  # entries that states of earlier versions lack

# What a number of the state is beside the others of its vector:
# "own": of its task alone; a new task starts with the buffer's `fill`.
# "simplex", "count": a share of a sum, which is 1 or the number of tasks. The present tasks of a
#     step divide their part of the sum among themselves; a new task starts with the mean share.
# "logits": the logarithm of a share of 1.
Kind = Literal["own", "simplex", "count", "logits"]


class KeepsTasks(nn.Module):
    """The base of all methods.

    Attributes:
        task_names: the tasks' names in the order of the state; () while only positions are known.
        alone_is_plain: whether a step of one task of several is plain training, without the method.
        growing: beginnings of the names of buffers that come into being with the first call; each
            has an entry a task.
    """

    growing: ClassVar[tuple[str, ...]] = ()
    alone_is_plain: ClassVar[bool] = True
    _learned: ClassVar[tuple[str, ...]] = ()  # parameters with one entry a task

    def __init__(self) -> None:
        super().__init__()
        self._num_tasks = 0  # of all tasks, in such a step
        # In a step that lacks tasks: what it adds to their `missed`.
        self._missed_by_absent: Tensor | None = None
        self._initial: dict[str, Tensor | None] = {}
        self._lazy: dict[str, tuple[Kind, float]] = {}
        self._given: list[str] = []  # buffers of numbers that a person gave
        self._given_names: tuple[str, ...] = ()  # where they came with names
        self._order_changes = 0  # how often names were set or dropped other than by a step
        self._met = False  # whether a step has had these names
        self._last: list[int] | None = None  # positions of the last step's tasks, as it had them
        self._present: list[int] | None = None  # positions, in a step that lacks some tasks
        self.task_names: tuple[str, ...] = ()

    def register_buffer(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
        """As in nn.Module; `reset` goes back to the first value."""
        super().register_buffer(name, tensor, persistent)
        if not self._grows(name) and name not in self._initial:  # assignments come by here too
            self._initial[name] = None if tensor is None else tensor.detach().clone()

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """As in nn.Module; `reset` goes back to the first value."""
        super().register_parameter(name, param)
        if name not in self._initial:
            self._initial[name] = None if param is None else param.detach().clone()

    def register_lazy(self, name: str, kind: Kind = "own", fill: float = 0.0) -> None:
        """A float64 buffer, in each dimension one entry a task, empty until it is first filled."""
        self._lazy[name] = (kind, fill)
        self.start_with(name, torch.empty(0, dtype=torch.float64))

    def start_with(self, name: str, tensor: Tensor) -> None:
        """A buffer that starts with another value than an earlier `register_...` gave it."""
        self._initial.pop(name, None)
        self.register_buffer(name, tensor)

    def register_given(
        self, name: str, numbers: Tensor, names: tuple[str, ...] = (), persistent: bool = False
    ) -> None:
        """A buffer of one given number a task, or one for all; by default no part of the state.

        names: their tasks', where they were given by name, see `numbers_of`.
        """
        self._given.append(name)
        self.register_buffer(name, self.in_given_order(name, numbers, names), persistent)

    def in_given_order(self, name: str, numbers: Tensor, names: tuple[str, ...]) -> Tensor:
        """Numbers by name in the order of those that were given before, which they set if first."""
        if names:
            numbers = self.in_own_order(name, numbers, names)
            self._given_names = self.task_names
        return numbers

    def in_own_order(self, name: str, numbers: Tensor, names: tuple[str, ...]) -> Tensor:
        """Numbers by name in the order of the state, which they set where it has no names.

        Raises:
            ValueError: they name other tasks.
        """
        if not names:
            return numbers
        if not self.task_names:
            self.task_names = names
            self._order_changes += 1
        if set(names) != set(self.task_names):
            raise ValueError(
                f"{name} names {', '.join(names)}, and the tasks of this {type(self).__name__} are "
                f"{', '.join(self.task_names)}: name these"
            )
        return pick(numbers, [names.index(task) for task in self.task_names])

    @torch.no_grad()
    def reset(self) -> None:
        """Makes the method what it was when it was made: without state, without names it has met.

        What it learns (`parameters()`) gets its first values again, in place; what an optimizer
        remembers of it stays.
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
        """Names of the state's buffers that have an entry a task now."""
        long = [name for name in self._buffers if self._grows(name)]
        return [name for name in (*self._lazy, *long) if len(getattr(self, name))]

    def _vectors(self) -> list[str]:
        """Names of the given numbers that are one a task."""
        return [name for name in self._given if getattr(self, name).dim() == 1]

    def _fixed_tasks(self) -> int:
        """How many tasks given and learned numbers are for; 0 for any number."""
        names = (*self._vectors(), *self._learned)
        return max([0, *(len(getattr(self, name)) for name in names)])

    def _known_tasks(self) -> int:
        """How many tasks the state is of; 0 where there is none yet."""
        state = [len(getattr(self, name)) for name in self._task_buffers()]
        return max([self._fixed_tasks(), *state])

    def _select(self, name: str, positions: Sequence[int]) -> Tensor:
        """A buffer's entries of some tasks."""
        found = getattr(self, name)
        for dim in range(1 if self._grows(name) else found.dim()):
            found = pick(found, positions, dim)
        return found

    def _put_in_order(self, names: tuple[str, ...]) -> None:
        """State and numbers in another order of the module's own names."""
        order = [self.task_names.index(name) for name in names]
        for name in self._vectors():
            setattr(self, name, self._select(name, order))
        for name in self._task_buffers():
            setattr(self, name, self._grown(name, len(names)))
            setattr(self, name, self._select(name, order))
        self.task_names = names

    def _fill_of(self, name: str) -> float | Tensor:
        """What a new task's entry of a buffer starts with, where it is no share of a sum."""
        return self._lazy[name][1] if name in self._lazy else 0.0

    def _grown(self, name: str, num_tasks: int) -> Tensor:
        """A buffer with entries for new tasks behind those it has."""
        have: Tensor = getattr(self, name)
        kind = self._lazy.get(name, ("own", 0.0))[0]
        old = len(have)
        if old == num_tasks:
            return have
        if kind == "logits":
            fill_with = have.logsumexp(dim=0) - torch.tensor(float(old)).log()
        else:
            start = self._fill_of(name) if kind == "own" else have.mean()
            fill_with = torch.as_tensor(start, dtype=have.dtype, device=have.device)
        shape = [num_tasks, *have.shape[1:]] if self._grows(name) else [num_tasks] * have.dim()
        full = fill_with.to(have).expand(shape).clone()
        full[tuple(slice(0, n) for n in have.shape)] = have
        if kind == "simplex":
            return full / full.sum()
        return full.log_softmax(dim=0) if kind == "logits" else full

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        own = [*self._buffers.items(), *self._parameters.items()]
        kept = [x for name, x in own if x is not None and (name in self._lazy or x.numel())]
        if kept:  # else the method does not depend on the tasks' order
            destination[prefix + NAMES] = encoded(self.task_names, kept[0].device)

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """As in nn.Module. A state that was saved without names is one of positions.

        Raises:
            ValueError: numbers of this method belong to other tasks; nothing has been loaded.
        """
        self.check_state(state_dict)
        return super().load_state_dict(state_dict, strict, assign)

    def check_state(self, state_dict: Mapping[str, Any]) -> None:
        """Raises ValueError where a saved state is of other tasks than numbers of this method."""
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
            if isinstance(saved, Tensor) and saved.dim() == 0:  # one count for all, as it once was
                own[prefix + name] = saved = saved.double().expand(max([0, *sizes])).clone()
            if isinstance(saved, Tensor) and saved.shape != have.shape:
                setattr(self, name, have.new_empty(saved.shape))
        super()._load_from_state_dict(
            own, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )


def members(method: nn.Module) -> list[KeepsTasks]:
    """A method and those inside it."""
    return [part for part in method.modules() if isinstance(part, KeepsTasks)]
