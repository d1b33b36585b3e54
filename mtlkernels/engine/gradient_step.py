"""T rows over all parameters -> .grad: what is shared is balanced, heads get their own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mtlkernels.aggregation.direction import add_direction, add_weighted_sum
from mtlkernels.aggregation.families import RowWeighting, Weighting, tell_parameters
from mtlkernels.aggregation.layout import TaskGrads, check_lengths, group_gradients
from mtlkernels.aggregation.weighting import HEADS_ALONE, balance, unasked
from mtlkernels.autograd.task_gradients import Rows
from mtlkernels.engine.options import Options
from mtlkernels.engine.parameters import shared_positions
from mtlkernels.report import Report


@torch.no_grad()
def combine_rows(rows: Rows, method: Weighting | RowWeighting, options: Options) -> Report:
    """The part of `backward` after the backwards: T lists of P gradients in, .grad out.

    Where no shared parameter is reached, heads get their gradients and the method is not asked.
    """
    options.check(method)
    grads, params, parts = rows.grads, rows.params, options.parts
    check_lengths(grads, params)
    balanced, heads = split(grads, params, options.shared)
    sections = [balanced] if parts is None else sections_of(parts, params, balanced)
    groups = [group_gradients(columns(grads, part), [params[p] for p in part]) for part in sections]
    head_members = [params[p] for p in heads]
    alone = None if options.weight_heads else _only_gradients(grads, heads)
    head_groups = group_gradients(columns(grads, heads) if alone is None else [alone], head_members)

    collected = rows.collected
    if balanced and parts is None:
        places = range(len(params)) if rows.places is None else rows.places
        at = [[places[balanced[p]] for p in group.params] for group in groups[0]]
        tell_parameters(method, at, dict(zip(places, params, strict=True)))
    if balanced:
        found = balance(
            *(groups, len(grads), method, rows.losses, parts is not None, rows.scale),
            weight_heads=options.weight_heads,
        )
    else:
        found = unasked(method, len(grads), rows.losses, None if parts is None else len(parts))
        collected += HEADS_ALONE
    add_direction(groups, found, [[params[p] for p in part] for part in sections])
    head_weights = found.head_weights
    if head_weights is None:
        count = len(grads) if alone is None else 1
        head_weights = found.status.new_ones(count, dtype=torch.float64)
    add_weighted_sum(head_groups, head_weights, head_members)
    return Report(rows.tasks, found.gram, found.weights, rows.losses, found.status, collected)


def _only_gradients(task_grads: TaskGrads, heads: Sequence[int]) -> list[Tensor] | None:
    """The gradients of heads that one task each reaches; None where another one is reached.

    One list of them takes a step less work than T lists with one gradient in a column.
    """
    kept = []
    for p in heads:
        column = [row[p] for row in task_grads]
        present = [grad for grad in column if grad is not None]
        if len(present) > 1 or present[0].layout is not torch.strided:  # which is refused by task
            return None
        kept.append(present[0])
    return kept


def reach(task_grads: TaskGrads) -> list[int]:
    """P numbers, how many of the tasks have a gradient for the parameter."""
    counts = [0] * len(task_grads[0])
    for row in task_grads:
        for p, grad in enumerate(row):
            if grad is not None:
                counts[p] += 1
    return counts


def split(
    task_grads: TaskGrads, params: Sequence[Tensor], shared: Sequence[Tensor] | None
) -> tuple[list[int], list[int]]:
    """Positions of the parameters to balance and of the other ones that some loss reaches."""
    reached = reach(task_grads)
    chosen = shared_positions(reached, len(task_grads), params, shared)
    balanced = [p for p, count in enumerate(reached) if count and p in chosen]
    return balanced, [p for p, count in enumerate(reached) if count and p not in chosen]


def sections_of(
    parts: Sequence[Sequence[Tensor]], params: Sequence[Tensor], balanced: Sequence[int]
) -> list[list[int]]:
    """Positions of the parameters to balance, part by part; parts may name others as well."""
    place = {id(params[p]): p for p in balanced}
    sections = [[place[id(param)] for param in part if id(param) in place] for part in parts]
    if sorted(p for part in sections for p in part) != sorted(balanced):
        raise ValueError(
            f"parts= must hold each of the {len(balanced)} shared parameters once: "
            f"{sum(map(len, sections))} of its entries are shared parameters"
        )
    return sections


def columns(task_grads: TaskGrads, params: Sequence[int]) -> list[list[Tensor | None]]:
    """T rows of the gradients at some positions."""
    return [[row[p] for p in params] for row in task_grads]
