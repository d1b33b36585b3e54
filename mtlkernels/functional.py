"""Task gradients and a method -> one direction and a report: gram, weights, combine.

A row method takes the gradients themselves and answers with directions; see `balance`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from mtlkernels.aggregation.direction import combined, place
from mtlkernels.aggregation.families import RowWeighting, Weighting, task_step, tell_parameters
from mtlkernels.aggregation.layout import Group, TaskGrads, check_lengths, group_gradients
from mtlkernels.aggregation.weighting import Balanced, balance, check_losses
from mtlkernels.report import Report


def aggregate(
    task_grads: TaskGrads,
    method: Weighting | RowWeighting,
    losses: Tensor | None = None,
    *,
    params: Sequence[Tensor] | None = None,
    tasks: Sequence[str] | None = None,
    parts: Sequence[Sequence[int]] | None = None,
) -> tuple[list[Tensor | None], Report]:
    """Returns a method's update direction for given task gradients.

    Args:
        task_grads: T lists of P tensors or None; None means that the task does not reach the
            parameter.
        method: a Gram method, for example `PCGrad()`, or a row method, for example `GradDrop()`.
        losses: (T) the tasks' losses, for methods that use them.
        params: the P parameters; the direction then has their strides.
        tasks: T names for the report, to which the method's state belongs.
        parts: positions of parameters, for example one list per layer, each position in one list.
            Each part gets its own weights, from its own Gram matrix; the method is then a
            `PerPart(method, len(parts))`.

    Returns:
        direction: P tensors in the shapes and strides of their parameters (of each first gradient
            where `params` is not given), None where all tasks have None. They are views of one flat
            vector for each dtype and device.
        report: Gram matrix, weights, status and what follows from them, see `Report`.

    Raises:
        ValueError, TypeError: the gradients do not fit together, see `layout.group_gradients`;
            there is no gradient at all; the method is a loss method; or the parts are not a
            partition of the parameters.
    """
    if isinstance(task_grads, Mapping):
        raise TypeError(
            f"task_grads is a {type(task_grads).__name__}: give T lists of P tensors, and their "
            "names as tasks="
        )
    if not isinstance(task_grads, Tensor):
        task_grads = [row if isinstance(row, Tensor) else list(row) for row in task_grads]
    if losses is not None and not isinstance(losses, Tensor):
        raise TypeError(f"losses is a {type(losses).__name__}: give a 1-D tensor of T losses")
    count = len(task_grads)
    if tasks is not None and len(tasks) != count:
        raise ValueError(f"{len(tasks)} names were given for {count} tasks")
    check_losses(losses, count)
    names = tuple(map(str, range(count) if tasks is None else tasks))
    with task_step(method, count if tasks is None else names) as step:
        order = step.order
        rows = task_grads if isinstance(task_grads, Tensor) else [task_grads[t] for t in order]
        if losses is not None and order != tuple(range(count)):
            losses = torch.stack([losses[t] for t in order])
        if parts is None:
            sections = [group_gradients(rows, params)]
        else:
            check_lengths(rows, params)
            check_partition(parts, len(rows[0]))
            sections = [group_part(rows, params, part) for part in parts]
        if parts is None:
            known = None if params is None else dict(enumerate(params))
            tell_parameters(method, [group.params for group in sections[0]], known)
        found = balance(sections, count, method, losses, parts is not None)
        report = Report(
            tuple(names[t] for t in order),
            None if found.gram is None else found.gram.detach(),
            None if found.weights is None else found.weights.detach(),
            None if losses is None else losses.detach(),
            found.status.detach(),
        )
        direction = _direction(sections, found, len(rows[0]))
    return direction, report.of_tasks(names, order)


def check_partition(parts: Sequence[Sequence[int]], num_params: int) -> None:
    """Raises ValueError unless each of the parameters is in exactly one part."""
    named = sorted(p for part in parts for p in part)
    if named == list(range(num_params)):
        return
    twice = sorted({p for p in named if named.count(p) > 1})
    alien = [p for p in named if not 0 <= p < num_params]
    missing = sorted(set(range(num_params)) - set(named))
    reasons = [(alien, "does not exist"), (twice, "is in two parts"), (missing, "is in no part")]
    where, reason = next((where, reason) for where, reason in reasons if where)
    raise ValueError(
        f"parts must hold each of the {num_params} parameters once: {where[0]} {reason}"
    )


def group_part(
    task_grads: TaskGrads, params: Sequence[Tensor] | None, part: Sequence[int]
) -> list[Group]:
    """`group_gradients` of the parameters at some positions; the groups hold those positions."""
    rows = [[row[p] for p in part] for row in task_grads]
    groups = group_gradients(rows, None if params is None else [params[p] for p in part])
    for group in groups:
        group.params = [part[p] for p in group.params]
    return groups


def _direction(
    sections: Sequence[Sequence[Group]], found: Balanced, num_params: int
) -> list[Tensor | None]:
    """The direction as P tensors, None where no task has a gradient."""
    direction: list[Tensor | None] = [None] * num_params
    for groups, flats in zip(sections, _flat_directions(sections, found), strict=True):
        place(direction, groups, flats)
    return direction


def _flat_directions(
    sections: Sequence[Sequence[Group]], found: Balanced
) -> Iterator[list[Tensor]]:
    if found.directions is not None:
        yield found.directions
        return
    assert found.weights is not None
    for groups, own in zip(sections, found.weights.view(len(sections), -1), strict=True):
        yield combined(groups, own)
