"""The tasks' gradients over all parameters, of one batch or added up over several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mtlkernels.collect import Row, gradients_above, rows_below, starts, task_gradients
from mtlkernels.cut import Cut, cut_at_heads, kinds_below, numbers_at

# Nodes whose backward torch runs once for a batch of gradients, and not once for each.
_BATCHED = {
    *("Abs", "AccumulateGrad", "Add", "Addcmul", "Addmm", "Alias", "Amax", "Atan", "Baddbmm"),
    *("Bmm", "Cat", "Clone", "Cos", "Diagonal", "Div", "Dot", "Erf", "Exp", "Expand", "Expm1"),
    *("Lerp", "LinalgVectorNorm", "Log", "Log1P", "Logsumexp", "Mean", "Mm", "Mul", "Neg"),
    *("Permute", "Pow", "Prod", "Reciprocal", "Relu", "Repeat", "Rsqrt", "Select", "Sigmoid"),
    *("Sin", "Slice", "Split", "SplitWithSizes", "Sqrt", "Squeeze", "Stack", "Sub", "Sum", "T"),
    *("Threshold", "ToCopy", "Transpose", "Unbind", "UnsafeView", "Unsqueeze", "Var", "View"),
}
# On a CPU one operation on T gradients saves little but the time to start T - 1 of them, and its
# intermediate results leave the cache: with fewer tasks, or more numbers at the cut, a loop is as
# fast or faster (up to 1.8 times, four layers of 32 to 512 on one core).
_CPU_TASKS = 16
_CPU_NUMBERS = 2**16


@dataclass
class Rows:
    """What T losses say of P parameters.

    Attributes:
        tasks: T names.
        losses: (T).
        grads: T lists of P gradients, None where a loss does not reach the parameter.
        scale: what the gradients are multiplied by, or None.
        collected: how they came about.
    """

    tasks: tuple[str, ...]
    losses: Tensor
    grads: list[Row]
    scale: Tensor | None
    collected: str

    def add(self, other: Rows) -> None:
        """Adds the losses and gradients of another batch.

        Raises:
            ValueError: it has other tasks or another number of parameters.
        """
        if other.tasks != self.tasks or len(other.grads[0]) != len(self.grads[0]):
            raise ValueError(
                f"the losses {', '.join(other.tasks)} were to be added to those of an earlier "
                f"batch, {', '.join(self.tasks)}, over {len(self.grads[0])} parameters: give the "
                "same tasks and parameters, or combine() first"
            )
        self.losses = self.losses + other.losses
        self.scale, self.collected = other.scale, other.collected
        for row, more in zip(self.grads, other.grads, strict=True):
            for p, grad in enumerate(more):
                have = row[p]
                if have is None or grad is None:
                    row[p] = grad if have is None else have
                else:
                    row[p] = have + grad


def collect_rows(
    losses: Sequence[Tensor],
    params: Sequence[Tensor],
    how: Literal["loop", "batched", "auto"],
    dtype: torch.dtype | None = None,
    scale: Tensor | None = None,
    retain_graph: bool = False,
) -> tuple[list[Row], str]:
    """T lists of P gradients, and how they came about.

    Args:
        losses: T scalar losses.
        params: P parameters.
        how: a backward a loss; or the heads one by one and one batched backward below them; or
            what the graph says is faster.
        dtype: what the gradients of float32 parameters are kept in.
        scale: what the gradients are multiplied by, a scalar on the device.
        retain_graph: keep the graph.
    """
    if how == "loop":
        return _loop(losses, params, dtype, scale, retain_graph), "a backward a loss"
    begun = starts(losses, scale)
    cut = cut_at_heads(begun.edges, params)
    reason = _against(cut, len(losses), losses[0].device) if how == "auto" else None
    if reason is not None:
        told = f"a backward a loss: {reason}"
        return _loop(losses, params, dtype, scale, retain_graph), told
    above = gradients_above(begun, cut, params, retain_graph=retain_graph)
    below = rows_below(cut, above.cotangents, [params[p] for p in cut.below], retain_graph)
    for row, more in zip(above.rows, below, strict=True):
        for p, grad in zip(cut.below, more, strict=True):
            row[p] = grad
    rows = [_kept(row, dtype) for row in above.rows]
    told = "all of it can be batched" if how == "auto" else "asked for"
    return rows, f"one batched backward below the heads: {told}"


def _against(cut: Cut, tasks: int, device: torch.device) -> str | None:
    """Why one batched backward below a cut would not be faster than T; None where it would."""
    alone = sorted(kinds_below(cut) - _BATCHED)
    if alone:
        return f"torch does not batch {', '.join(alone)}"
    if device.type != "cpu":
        return None
    if tasks < _CPU_TASKS:
        return f"on a CPU a batched one takes {_CPU_TASKS} tasks to be faster"
    numbers = tasks * numbers_at(cut)
    if numbers > _CPU_NUMBERS:
        return f"on a CPU one on {numbers:,} numbers, more than {_CPU_NUMBERS:,}, is not faster"
    return None


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
