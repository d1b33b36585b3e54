"""The tasks' gradients over all parameters, of one batch or added up over several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mtlkernels.autograd.backwards import (
    Row,
    gradients_above,
    rows_below,
    starts,
    task_gradients,
)
from mtlkernels.autograd.cut import cut_at_heads
from mtlkernels.autograd.trial import Trial


@dataclass
class Rows:
    """What T losses say of P parameters.

    Attributes:
        tasks: T names.
        losses: (T).
        params: P parameters.
        grads: T lists of P gradients, None where a loss does not reach the parameter.
        scale: what the gradients are multiplied by, or None.
        collected: how they came about.
        named: whether the tasks' names are more than their numbers.
        present: names of the tasks that had a loss; None for all.
        places: positions of the parameters in the list that a person gave; None where they are all.
    """

    tasks: tuple[str, ...]
    losses: Tensor
    params: Sequence[Tensor]
    grads: list[Row]
    scale: Tensor | None
    collected: str
    named: bool = True
    present: frozenset[str] | None = None
    places: Sequence[int] | None = None

    def present_positions(self) -> list[int]:
        """Positions of the tasks that had a loss."""
        here = self.present
        return [t for t, task in enumerate(self.tasks) if here is None or task in here]

    def of_tasks(self, order: Sequence[int]) -> Rows:
        """Those of the tasks at some positions, in that order."""
        if list(order) == list(range(len(self.tasks))):
            return self
        losses = self.losses.unbind()
        return replace(
            self,
            tasks=tuple(self.tasks[t] for t in order),
            losses=torch.stack([losses[t] for t in order]),
            grads=[self.grads[t] for t in order],
        )

    def with_absent(self, tasks: tuple[str, ...], named: bool) -> Rows:
        """These rows among those, without gradients, of tasks that have no loss in this batch."""
        place = {task: t for t, task in enumerate(self.tasks)}
        losses, zero = self.losses.unbind(), torch.zeros_like(self.losses[0])
        none: Row = [None] * len(self.params)
        return replace(
            self,
            tasks=tasks,
            losses=torch.stack([losses[place[n]] if n in place else zero for n in tasks]),
            grads=[self.grads[place[n]] if n in place else list(none) for n in tasks],
            named=named,
            present=frozenset(self.tasks),
        )

    def keep(self) -> Rows:
        """These rows in memory of their own: what autograd hands out may be used again."""
        for row in self.grads:
            row[:] = [None if grad is None else grad.clone() for grad in row]
        return self

    def add(self, other: Rows) -> None:
        """Adds the losses and gradients of another batch; its scale becomes that of the sum.

        A task may be in one of the two alone.

        Raises:
            ValueError: it has other parameters, other positions of tasks without names, or one of
                the two has no scale.
        """
        if other.named != self.named or (not self.named and other.tasks != self.tasks):
            raise ValueError(
                f"the losses {', '.join(other.tasks)} were to be added to those of an earlier "
                f"batch, {', '.join(self.tasks)}: give the same tasks, by name or in the same "
                "places, with None for one that has no data, or combine() first"
            )
        if list(map(id, other.params)) != list(map(id, self.params)):
            raise ValueError(
                "other parameters require grad than when the earlier batch was added: combine() "
                "first, or zero_grad() to drop what was added"
            )
        if (self.scale is None) != (other.scale is None):
            raise ValueError("give scaler= with every micro-batch or with none")
        ratio = None
        if self.scale is not None and other.scale is not None:
            ratio = other.scale / self.scale
        new = tuple(task for task in other.tasks if task not in self.tasks)
        self.tasks += new
        self.grads += [[None] * len(self.params) for _ in new]
        losses = list(self.losses.unbind()) + [torch.zeros_like(self.losses[0])] * len(new)
        theirs = dict(zip(other.tasks, range(len(other.tasks)), strict=True))
        for t, (task, row) in enumerate(zip(self.tasks, self.grads, strict=True)):
            at = theirs.get(task)
            more: Row = [None] * len(row) if at is None else other.grads[at]
            row[:] = [_sum(a, b, ratio) for a, b in zip(row, more, strict=True)]
            if at is not None:
                losses[t] = losses[t] + other.losses[at]
        self.losses = torch.stack(losses)
        if self.present is not None and other.present is not None:
            self.present |= other.present
        self.scale, self.collected = other.scale, other.collected


def _sum(have: Tensor | None, more: Tensor | None, ratio: Tensor | None) -> Tensor | None:
    """ratio * have + more, in memory of its own."""
    if have is None:
        return None if more is None else more.clone()
    if ratio is not None:
        ratio = ratio.to(have)
        return ratio * have if more is None else torch.addcmul(more, have, ratio)
    return have if more is None else have + more


def collect_rows(
    losses: Sequence[Tensor],
    params: Sequence[Tensor],
    how: str,
    dtype: torch.dtype | None = None,
    scale: Tensor | None = None,
    retain_graph: bool = False,
    trial: Trial | None = None,
) -> tuple[list[Row], str]:
    """T lists of P gradients, and how they came about.

    Args:
        losses: T scalar losses.
        params: P parameters.
        how: "loop", a backward a loss; "batched", the heads one by one and one batched backward
            below them.
        dtype: what the gradients of float32 parameters are kept in.
        scale: what the gradients are multiplied by, a scalar on the device.
        retain_graph: keep the graph.
        trial: what checks this step.

    Raises:
        SelfCheckError: the trial finds that the gradients are wrong.
    """
    if trial is not None:
        with trial.over(losses, scale, retain_graph):
            kept = retain_graph or trial.retains
            rows, told = collect_rows(losses, params, how, dtype, scale, kept)
            trial.weigh(*rows)
        trial.add(*rows)
        trial.judge()
        return rows, told
    if how == "loop":
        return _loop(losses, params, dtype, scale, retain_graph), "a backward a loss"
    begun = starts(losses, scale)
    cut = cut_at_heads(begun.edges, params)
    above = gradients_above(begun, cut, params, retain_graph)
    below = rows_below(cut, above.cotangents, [params[p] for p in cut.below], retain_graph)
    for row, more in zip(above.rows, below, strict=True):
        for p, grad in zip(cut.below, more, strict=True):
            row[p] = grad
    return [_kept(row, dtype) for row in above.rows], "one batched backward below the heads"


def _loop(
    losses: Sequence[Tensor],
    params: Sequence[Tensor],
    dtype: torch.dtype | None,
    scale: Tensor | None,
    retain_graph: bool,
) -> list[Row]:
    if dtype is None:
        return task_gradients(losses, params, retain_graph, scale)
    return task_gradients(losses, params, retain_graph, scale, lambda row: _kept(row, dtype))


def _kept(row: Row, dtype: torch.dtype | None) -> Row:
    """A row in the dtype that it is kept in."""
    if dtype is None:
        return row
    return [
        grad.to(dtype) if grad is not None and grad.dtype == torch.float32 else grad for grad in row
    ]
