"""A step with some of a method's tasks, in the method's order."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mtlkernels.methods.numbers import pick
from mtlkernels.methods.tasks import KeepsTasks, members


class Plan(NamedTuple):
    """How a step's tasks are seated.

    Attributes:
        names: all names that the method knows in this step, in its order; () if there are none.
        tasks: how many tasks the method knows.
        seats: the present tasks' positions in the method's order, ascending.
        order: the same tasks' positions in the step's order.
    """

    names: tuple[str, ...]
    tasks: int
    seats: tuple[int, ...]
    order: tuple[int, ...]


class TaskStep:
    """A context in which a method's state is that of the present tasks.

        with method.for_tasks(("seg", "depth", "normal"), [0, 2]) as step:
            weights = method(gram)  # of the tasks at `step.order`, in that order

    New names become new tasks after those that the method knows. The state of absent tasks does not
    change. If the body raises, no task's state changes, except state of the gradients' size, which
    the method handles itself.

    Attributes:
        order: positions, among the step's tasks, of those that are present.
        alone: whether one task of several is present: the step is then plain training, without the
            method.

    Args:
        method: the method.
        plan: the tasks' positions, see `plan_of`.
        named: whether the method knows their names already.
    """

    def __init__(self, method: KeepsTasks, plan: tuple[Any, ...], named: bool = False) -> None:
        self.parts = members(method)
        self.named = named
        self.names, self.tasks, self.seats, self.order = Plan(*plan)
        self.alone = len(self.order) == 1 and self.tasks > 1 and method.alone_is_plain
        self.saved: list[tuple[KeepsTasks, str, Tensor, Tensor | None]] = []
        self.copies: list[tuple[KeepsTasks, str, Tensor, Tensor]] = []

    def __enter__(self) -> TaskStep:
        if not self.named:
            put_in_order(self.parts, self.names)
            for part in self.parts:
                part._step_names = self.names
        if not torch.compiler.is_compiling():
            self._copy()
        if not self.alone and not self._whole():
            self._take()
        return self

    def _copy(self) -> None:
        """Copies the state of methods that change it before the backward pass, which may raise."""
        for part in self.parts:
            if part._changes_first:
                for name, buffer in part._buffers.items():
                    if buffer is not None:
                        self.copies.append((part, name, buffer, buffer.clone()))

    @torch.no_grad()
    def _restore(self) -> None:
        """Gives the method the state that it had before the step."""
        for part, name, before, _ in self.saved:
            setattr(part, name, before)
        for part, name, before, copy in self.copies:
            before.copy_(copy)
            setattr(part, name, before)

    def _placed(self) -> list[int]:
        """The seats of the present tasks in the step's order; none if one task is alone."""
        pairs = sorted(zip(self.order, self.seats, strict=True))
        return [] if self.alone else [seat for _, seat in pairs]

    def _whole(self) -> bool:
        """Whether the state can be used as it is: all tasks are present and have their entries."""
        if len(self.seats) < self.tasks:
            return False
        if not self.names:
            return True
        return all(
            len(getattr(part, name)) >= self.tasks
            for part in self.parts
            for name in part._task_buffers()
        )

    def _take(self) -> None:
        """Replaces the state by that of the present tasks."""
        for part in self.parts:
            part._present, part._missed_by_absent = list(self.seats), None
            part._num_tasks = self.tasks
            for name in part._vectors():
                self.saved.append((part, name, getattr(part, name), None))
                setattr(part, name, part._select(name, self.seats))
            for name in part._lazy:
                before = getattr(part, name)
                if len(before) == 0:
                    self.saved.append((part, name, before, None))
                    continue
                setattr(part, name, part._grown(name, self.tasks))
                whole = getattr(part, name)
                self.saved.append((part, name, before, whole))
                setattr(part, name, _share(part, name, whole, self.seats))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        taken = bool(self.saved) or any(part._present is not None for part in self.parts)
        if kind is not None:
            self._restore()
        elif taken:
            self._put_back()
        for part in self.parts:
            part._present, part._step_names = None, ()
            if kind is None:
                part._last = self._placed()
        if kind is None and not self.named:
            set_names(self.parts, self.names)

    def _put_back(self) -> None:
        """Writes the present tasks' state back into the state of all tasks."""
        for part, name, before, whole in self.saved:
            if name in part._given:
                setattr(part, name, before)
                continue
            now = getattr(part, name)
            if whole is None:
                whole = _fresh(part, name, now, self.tasks)
            if len(now):
                setattr(part, name, _merged(part, name, whole, now, self.seats))
        for part in self.parts:
            if (more := part._missed_by_absent) is not None:
                missed = enumerate(part.get_buffer("missed").unbind())
                part.missed = torch.stack([x if t in self.seats else x + more for t, x in missed])


def plan_of(
    method: KeepsTasks, names: Sequence[str] | int, present: Sequence[int] | None = None
) -> Plan:
    """The positions of a step's tasks; changes nothing.

    Args:
        method: the method.
        names: T names; or T, if the tasks have positions only.
        present: positions of the tasks that take part; by default all.

    Raises:
        ValueError: given numbers, or the state, belong to other tasks.
    """
    parts = members(method)
    count = names if isinstance(names, int) else len(names)
    chosen = range(count) if present is None else present
    if isinstance(names, int):
        known = _by_position(parts, names, len(chosen))
        place = list(range(count))
    else:
        known = _by_name(parts, tuple(names), len(chosen))
        place = [known.index(name) for name in names]
    pairs = sorted((place[i], i) for i in chosen)
    seats, order = tuple(seat for seat, _ in pairs), tuple(i for _, i in pairs)
    return Plan(known, max(count, len(known)), seats, order)


def put_in_order(parts: Sequence[KeepsTasks], names: tuple[str, ...]) -> None:
    """Puts the state of all parts of a method into the order of the names."""
    for part in parts:
        known = names[: len(part.task_names)]
        if known and part.task_names != known:
            part._put_in_order(known)


def set_names(parts: Sequence[KeepsTasks], names: tuple[str, ...]) -> None:
    """Sets the names of a method's tasks."""
    for part in parts:
        if names:
            part.task_names, part._met = names, True


def _known_names(parts: Sequence[KeepsTasks]) -> tuple[str, ...]:
    return next((part.task_names for part in parts if part.task_names), ())


def _by_position(parts: Sequence[KeepsTasks], count: int, present: int) -> tuple[str, ...]:
    for part in parts:
        if part._given_names:
            raise ValueError(
                f"this {type(part).__name__} has numbers by name, for "
                f"{', '.join(part._given_names)}, but the losses have no names: give a mapping of "
                "losses, or aggregate the names as tasks="
            )
        _check_count(part, count, present)
    names = _known_names(parts)
    return names if len(names) == count else ()


def _by_name(parts: Sequence[KeepsTasks], names: tuple[str, ...], present: int) -> tuple[str, ...]:
    known = _known_names(parts)
    for part in parts:
        if part._given_names and not part._met and set(part._given_names) != set(names):
            raise ValueError(
                f"this {type(part).__name__} has numbers for {', '.join(part._given_names)} and "
                f"got losses of {', '.join(names)}: name the same tasks, and give None for one "
                "that has no data"
            )
        if part.task_names and set(part.task_names) != set(known):
            raise ValueError(
                f"parts of this method have state of different tasks, {', '.join(part.task_names)} "
                f"and {', '.join(known)}: use new methods"
            )
    new = tuple(name for name in names if name not in known)
    if not known:
        for part in parts:
            _check_count(part, len(names), present)
    elif new:
        fixed = next((part for part in parts if part._fixed_tasks()), None)
        if fixed is not None:
            raise ValueError(
                f"this {type(fixed).__name__} has numbers for {', '.join(known)} and got a loss of "
                f"{new[0]}: make a new one for these tasks"
            )
    return known + new


def _check_count(part: KeepsTasks, count: int, present: int) -> None:
    have = part._known_tasks()
    if present < count and have not in (0, count):  # otherwise the method raises its error
        raise ValueError(
            f"this {type(part).__name__} is for {have} tasks and got {count} losses, of which some "
            "are None: give all tasks, None for each that has no data"
        )


def _share(part: KeepsTasks, name: str, whole: Tensor, seats: Sequence[int]) -> Tensor:
    """The present tasks' state; shares are rescaled to the sum over the present tasks."""
    own = part._select(name, seats)
    kind, _ = part._lazy[name]
    if kind not in ("simplex", "count"):
        return own
    total, target = own.sum(), 1.0 if kind == "simplex" else float(len(seats))
    return torch.where(total > 0, target * own / total, target / len(seats))


def _fresh(part: KeepsTasks, name: str, now: Tensor, num_tasks: int) -> Tensor:
    """The state of all tasks after a first step that had some of them."""
    if len(now) == 0:
        return now
    kind, fill = part._lazy[name]
    if kind == "simplex":
        fill = 1 / num_tasks
    elif kind == "count":
        fill = 1.0
    return torch.full_like(now[(0,) * now.dim()], fill).expand([num_tasks] * now.dim()).clone()


def _merged(
    part: KeepsTasks, name: str, whole: Tensor, now: Tensor, seats: Sequence[int]
) -> Tensor:
    """The state of all tasks with new values of the present ones; the sum of shares stays."""
    kind, _ = part._lazy.get(name, ("own", 0.0))
    if kind in ("simplex", "count"):
        now = now * (pick(whole, seats).sum() / now.sum())
    elif kind == "logits":
        now = now - now.logsumexp(dim=0) + pick(whole, seats).logsumexp(dim=0)
    if whole.dim() == 1:
        rows = dict(zip(seats, now.unbind(), strict=True))
        return torch.stack([rows.get(seat, old) for seat, old in enumerate(whole.unbind())])
    whole = whole.clone()
    for seat, row in zip(seats, now.unbind(), strict=True):
        for other, value in zip(seats, row.unbind(), strict=True):
            whole[seat, other] = value
    return whole
