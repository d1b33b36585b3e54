"""Which steps are checked: the first one, and those that reach what no checked step has reached."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from mtlkernels.trial import Trial

_TRIES = 8  # steps in which what is new is waited for: a GradScaler skips its first ones, say


class SelfCheck:
    """Remembers what has been checked; a copy, or what is loaded, checks anew.

    A task is covered at a parameter once a checked step in which it reached the parameter passed.

    Args:
        groups: an optimizer's, for the names of its parameters where it knows them.
        module: the model, for the same.
    """

    def __init__(
        self, groups: Sequence[Mapping[str, Any]] = (), module: nn.Module | None = None
    ) -> None:
        self.groups, self.module = groups, module
        self._covered: dict[str, set[int]] = {}
        self._wanted: dict[str, set[int]] = {}
        self._left = 0
        self._last: object = None

    def __reduce__(self) -> tuple[Any, ...]:
        return SelfCheck, ()

    def trial(
        self,
        tasks: Sequence[str],
        params: Sequence[Tensor],
        local: Callable[[Sequence[Tensor | None]], Sequence[Tensor | None]] = lambda row: row,
    ) -> Trial | None:
        """This step's check, None where there is nothing new to check; `local`: see `Trial`."""
        for task in tasks:
            if task not in self._covered:
                self._covered[task], self._left = set(), _TRIES
        if not self._left or len(tasks) < 2:
            return None
        self._left -= 1
        return Trial(params, self._names(), local)

    def saw_rows(
        self,
        tasks: tuple[str, ...],
        params: Sequence[Tensor],
        rows: Sequence[Sequence[Tensor | None]],
        counts: Sequence[int],
        trial: Trial | None = None,
    ) -> None:
        """Notes what a step reached, from its task gradients; in little time if nothing is new.

        Args:
            tasks: T names.
            params: P parameters.
            rows: T lists of P gradients.
            counts: P numbers, how many tasks reach each parameter.
            trial: what checked the step.
        """
        now = (tasks, counts)
        if trial is not None or now != self._last:
            self._last = now
            reach = [[p for p, grad in enumerate(row) if grad is not None] for row in rows]
            self.saw(tasks, params, reach, trial)

    def saw(
        self,
        tasks: Sequence[str],
        params: Sequence[Tensor],
        reach: Sequence[Collection[int]],
        trial: Trial | None = None,
    ) -> None:
        """Notes what a step reached.

        Args:
            tasks: T names.
            params: P parameters.
            reach: T collections of the parameters, by position, that a task reaches.
            trial: what checked the step.
        """
        passed = trial is not None and trial.compared
        for task, own in zip(tasks, reach, strict=True):
            ids = {id(params[p]) for p in own}
            covered = self._covered.setdefault(task, set())
            wanted = self._wanted.setdefault(task, set())
            if passed:
                covered |= ids
                wanted -= ids
            elif not ids <= covered | wanted:
                wanted |= ids - covered
                self._left = _TRIES
        if passed and not any(self._wanted.values()):
            self._left = 0

    def _names(self) -> dict[int, str]:
        named = [] if self.module is None else self.module.named_parameters()
        names = {id(param): name for name, param in named}
        for group in self.groups:
            names |= dict(zip(map(id, group["params"]), group.get("param_names", ()), strict=False))
        return names
