"""One step: the order that all engines have in common, and the hooks in which they differ."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from mtlkernels.aggregation.families import AnyMethod, keeps_weights, task_step, weighs_losses
from mtlkernels.aggregation.layout import UnfitGradientError
from mtlkernels.autograd.scale import Scaler
from mtlkernels.autograd.self_check import SelfCheck
from mtlkernels.autograd.task_gradients import Rows
from mtlkernels.engine.options import Options, check_keeps_rows
from mtlkernels.engine.parameters import Losses
from mtlkernels.engine.plain import plain
from mtlkernels.report import Report, Status

Result = TypeVar("Result")


class StepArguments(NamedTuple):
    """What a step is asked to do; see `mtlkernels.backward` for each.

    Attributes:
        losses: as a person gave them; functions for a pipeline.
        check: what compares the task gradients with one backward pass of the summed loss.
    """

    losses: Losses
    params: Sequence[Tensor]
    method: Any
    options: Options
    features: Tensor | Sequence[Tensor] | None = None
    scaler: Scaler | Tensor | None = None
    retain_graph: bool = False
    check: SelfCheck | None = None

    @property
    def feature_list(self) -> Sequence[Tensor] | None:
        """The features as a list, or None."""
        return [self.features] if isinstance(self.features, Tensor) else self.features

    def of_one_task(self) -> StepArguments:
        """The arguments of plain training, for a step in which one of several tasks is present."""
        return StepArguments(
            *(self.losses, self.params, plain(self.method), self.options.of_plain_step()),
            scaler=self.scaler,
            retain_graph=self.retain_graph,
            check=self.check,
        )


@dataclass
class CheckedStep:
    """A step's tasks and parameters, checked.

    Attributes:
        tasks: T names.
        named: whether the tasks' names are more than their numbers.
        values: T losses, or functions of a pipeline; None for a task that has none.
        params: the parameters that require grad.
        scale: what .grad is multiplied by, or None.
        present: positions of the tasks that take part.
    """

    tasks: tuple[str, ...]
    named: bool
    values: list[Any]
    params: list[Tensor]
    scale: Tensor | None
    present: Sequence[int]

    @property
    def names(self) -> tuple[str, ...] | int:
        """The names, or where there are none how many tasks there are."""
        return self.tasks if self.named else len(self.tasks)

    def of_tasks(self, order: Sequence[int]) -> Any:
        """The step of the tasks at some positions, in that order."""
        tasks = tuple(self.tasks[t] for t in order)
        values = [self.values[t] for t in order]
        return CheckedStep(tasks, self.named, values, self.params, self.scale, range(len(tasks)))


class Engine(ABC):
    """Takes steps: checks, collects task gradients, sums, weighs and writes .grad.

    Engines differ in their hooks: `begin` and `agree` (what is checked, and what ranks agree on
    first), `collect` (where task gradients come from), `combine`, `weigh_losses` and
    `weigh_once` (what is summed over ranks, and how the direction is written).

    Attributes:
        absent: the status of a task that no rank has in a step.
    """

    absent = Status.ZERO_GRADIENT

    def step(self, given: StepArguments) -> Report:
        """`mtlkernels.backward`."""
        return _numbered(self._step, given)

    def _step(self, given: StepArguments) -> Report:
        now = self.agree(given)
        with task_step(given.method, now.names, now.present) as step_of:
            if step_of.alone:
                given = given.of_one_task()
            report = self._take(now.of_tasks(step_of.order), given)
        return report.of_tasks(now.tasks, step_of.order, self.absent)

    def _take(self, now: Any, given: StepArguments) -> Report:
        """A step of the tasks that are present, in the method's order."""
        method: AnyMethod = given.method
        if weighs_losses(method):
            return self.weigh_losses(now, given)
        weights = None
        if keeps_weights(method):
            weights = method.kept_weights(now.tasks, given.scaler is not None)
        if weights is not None or given.features is not None or given.options.weighted:
            report = self.weigh_once(now, given, weights)
        else:
            report = self.weigh_gradients(now, given)
        if keeps_weights(method):
            method.count(now.tasks)
        return report

    def weigh_gradients(self, now: Any, given: StepArguments) -> Report:
        """T backward passes, and the method's direction of the task gradients."""
        return self.combine(now, self.collect(now, given), given)

    def collect_step(self, given: StepArguments) -> Rows:
        """The task gradients of one batch, to be added to others' and given to `combine_rows`.

        Raises:
            ValueError: as `mtlkernels.backward`; or the method or an option stores no task
                gradients that could be added.
        """
        return _numbered(self._collect_step, given)

    def _collect_step(self, given: StepArguments) -> Rows:
        check_keeps_rows(given.method, given.options)
        now = self.begin(given)
        rows = self.collect(now.of_tasks(now.present), given)
        return rows.with_absent(now.tasks, now.named)

    def combine_rows(self, rows: Rows, given: StepArguments) -> Report:
        """Writes .grad from collected task gradients, of the tasks that any micro-batch had."""
        given.options.check(given.method)
        now = self.agree_on_rows(rows, given)
        with task_step(given.method, now.names, now.present) as step_of:
            if step_of.alone:
                given = given.of_one_task()
            order = step_of.order
            report = self.combine(now.of_tasks(order), rows.of_tasks(order), given)
        return report.of_tasks(now.tasks, step_of.order, self.absent)

    @abstractmethod
    def begin(self, given: StepArguments) -> Any:
        """Hook: the arguments, checked in this process, as a `CheckedStep`."""

    def agree(self, given: StepArguments) -> Any:
        """Hook: `begin`, and whatever ranks have to agree on before a step."""
        return self.begin(given)

    def agree_on_rows(self, rows: Rows, given: StepArguments) -> Any:
        """Hook: the `CheckedStep` of collected task gradients, agreed on by the ranks."""
        none = [None] * len(rows.tasks)
        present = rows.present_positions()
        return CheckedStep(rows.tasks, rows.named, none, list(rows.params), rows.scale, present)

    @abstractmethod
    def collect(self, now: Any, given: StepArguments) -> Rows:
        """Hook: one gradient list a task, over all parameters."""

    @abstractmethod
    def combine(self, now: Any, rows: Rows, given: StepArguments) -> Report:
        """Hook: from task gradients to Gram matrix, weights and .grad."""

    @abstractmethod
    def weigh_losses(self, now: Any, given: StepArguments) -> Report:
        """Hook: a loss method's own loss, and one backward pass of it."""

    @abstractmethod
    def weigh_once(self, now: Any, given: StepArguments, weights: Tensor | None) -> Report:
        """Hook: one weighted backward pass.

        weights: those that the method reuses; None where they are to be measured.
        """


def _numbered(step: Callable[[StepArguments], Result], given: StepArguments) -> Result:
    """A step whose errors number the parameters as they were given."""
    if torch.compiler.is_compiling():
        return step(given)
    try:
        return step(given)
    except UnfitGradientError as error:
        raise error.among(given.params) from None
