"""Puts the tasks of a step over several ranks into the method's order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from mtlkernels.aggregation.families import AnyMethod, RowWeighting, Weighting, task_step
from mtlkernels.autograd.scale import Scaler
from mtlkernels.autograd.self_check import SelfCheck
from mtlkernels.autograd.task_gradients import Rows
from mtlkernels.distributed.collectives import OfRanks
from mtlkernels.engine.local import Engine
from mtlkernels.engine.options import Options
from mtlkernels.engine.parameters import Losses, entries
from mtlkernels.engine.plain import plain
from mtlkernels.report import Report


class ByName(OfRanks):
    """Passes tasks to another engine in the method's order; its report has the order of the losses.

    If a name that the method knows is missing from the mapping on all ranks, its task takes no part
    in the step. A loss that is None stays in the step: another rank may have data for its task.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def step(
        self,
        losses: Losses,
        params: Sequence[Tensor],
        method: AnyMethod,
        options: Options,
        features: Tensor | Sequence[Tensor] | None = None,
        scaler: Scaler | Tensor | None = None,
        retain_graph: bool = False,
        check: SelfCheck | None = None,
    ) -> Report:
        """`mtlkernels.backward` over the ranks."""
        losses = entries(losses)
        if not isinstance(losses, Mapping) or not losses:
            return self.engine.step(
                losses, params, method, options, features, scaler, retain_graph, check
            )
        names, values = tuple(map(str, losses)), list(losses.values())
        with task_step(method, names) as step_of:
            order = step_of.order
            given: Any = {names[t]: values[t] for t in order}
            if step_of.alone:
                method, options, features = plain(method), options.of_plain_step(), None
            report = self.engine.step(
                given, params, method, options, features, scaler, retain_graph, check
            )
        return report.of_tasks(names, order)

    def collect_step(
        self,
        losses: Losses,
        params: Sequence[Tensor],
        method: AnyMethod,
        options: Options,
        scaler: Scaler | Tensor | None = None,
        retain_graph: bool = False,
        check: SelfCheck | None = None,
    ) -> Rows:
        """One micro-batch, its tasks in the order of the losses."""
        rows = self.engine.collect_step(
            losses, params, method, options, scaler, retain_graph, check
        )
        return replace(rows, named=isinstance(entries(losses), Mapping))

    def combine_rows(
        self,
        rows: Rows,
        method: Weighting | RowWeighting,
        options: Options,
        check: SelfCheck | None = None,
    ) -> Report:
        """Combines all micro-batches, their tasks in the method's order."""
        with task_step(method, rows.tasks if rows.named else len(rows.tasks)) as step_of:
            ordered = rows.of_tasks(step_of.order)
            report = self.engine.combine_rows(ordered, method, options, check)
        return report.of_tasks(rows.tasks, step_of.order)
