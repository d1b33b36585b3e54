"""Decides which steps are checked: the first, and each in which a task reaches new parameters."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from mtlkernels.autograd.hidden_heads import HiddenHeads
from mtlkernels.autograd.trial import Trial, name_of

_NAMED = 4  # how many parameters a warning names
_TRIES = 8  # steps to try until a check has finite numbers: a GradScaler skips its first steps


class SelfCheck:
    """Remembers what has been checked; a copied or loaded object starts without memory.

    A pair of task and parameter is covered once a step in which the task reaches it has passed.

    Args:
        groups: the optimizer's parameter groups, for parameter names where they have them.
        module: the model, for parameter names.
    """

    def __init__(
        self, groups: Sequence[Mapping[str, Any]] = (), module: nn.Module | None = None
    ) -> None:
        self.groups, self.module = groups, module
        self._covered: dict[str, set[int]] = {}
        self._wanted: dict[str, set[int]] = {}
        self.heads = HiddenHeads()
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
        """The check of this step, or None if nothing is new; for `local` see `Trial`."""
        for task in tasks:
            if task not in self._covered:
                self._covered[task], self._left = set(), _TRIES
                self.heads = HiddenHeads()
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
        """Records which parameters a step reached, from its task gradients; fast if nothing is new.

        Args:
            tasks: T names.
            params: P parameters.
            rows: T lists of P gradients.
            counts: P numbers, how many tasks reach each parameter.
            trial: the check of the step, if it had one.
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
        """Records which parameters a step reached.

        Args:
            tasks: T names.
            params: P parameters.
            reach: T collections of the parameters, by position, that a task reaches.
            trial: the check of the step, if it had one.
        """
        passed = trial is not None and trial.compared
        for task, positions in zip(tasks, reach, strict=True):
            ids = {id(params[p]) for p in positions}
            covered = self._covered.setdefault(task, set())
            wanted = self._wanted.setdefault(task, set())
            if passed:
                covered |= ids
                wanted -= ids
            elif not ids <= covered | wanted:
                wanted |= ids - covered
                self._left, self.heads = _TRIES, HiddenHeads()
        if passed and not any(self._wanted.values()):
            self._left = 0

    def look_for_heads(self, tasks: Sequence[str], params: Sequence[Tensor]) -> None:
        """Warns, once, of parameters that are treated as shared but look like heads.

        Call `heads.note` with the gradients of each task first.

        Args:
            tasks: T names.
            params: P parameters.
        """
        suspects = self.heads.look(tasks, params)
        if not suspects:
            return
        names = self._names()
        listed = [f"{name_of(p, params[p], names)} of {task!r}" for p, task in suspects.items()]
        more = f" and {len(listed) - _NAMED} more" if len(listed) > _NAMED else ""
        warnings.warn(
            f"{len(listed)} of the parameters that several tasks reach look like heads: "
            f"{', '.join(listed[:_NAMED])}{more}. In the first steps the gradient of that one task "
            "alone was other than zero there. Outputs that are joined and picked by a mask, "
            "torch.where, a product or einsum do that, heads in one autograd Function, and "
            "scripted models. If they are heads, name the shared parameters, or they are balanced "
            "as shared ones: MTLOptimizer(base, method, shared=model.trunk.parameters()). If "
            "another loss is only zero there so far, as a hinge penalty may be, all is well",
            stacklevel=2,
        )

    def _names(self) -> dict[int, str]:
        named = [] if self.module is None else self.module.named_parameters()
        names = {id(param): name for name, param in named}
        for group in self.groups:
            names |= dict(zip(map(id, group["params"]), group.get("param_names", ()), strict=False))
        return names
