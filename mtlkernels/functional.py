"""Task gradients and a method -> one direction and a report: gram, weights, combine.

A row method takes the gradients themselves and answers with directions; see `balance`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from mtlkernels.aggregation.direction import combined, place
from mtlkernels.aggregation.families import (
    AnyMethod,
    RowWeighting,
    Weighting,
    check_method,
    keeps_weights,
    task_step,
    tell_parameters,
    tell_parts,
)
from mtlkernels.aggregation.layout import Group, TaskGrads, check_lengths, group_gradients
from mtlkernels.aggregation.weighting import Balanced, balance, check_losses
from mtlkernels.autograd.self_check import SelfCheck
from mtlkernels.engine.balanced_loss import balanced_sum, restored
from mtlkernels.engine.base import StepArguments
from mtlkernels.engine.local import LOCAL
from mtlkernels.engine.options import Options
from mtlkernels.engine.parameters import Losses, check_list
from mtlkernels.report import Report


def balanced_loss(
    losses: Losses,
    params: Sequence[Tensor],
    method: AnyMethod,
    *,
    shared: Sequence[Tensor] | None = None,
    weight_heads: bool = False,
    parts: Sequence[Sequence[Tensor]] | None = None,
    measure: Sequence[Tensor] | None = None,
    features: Tensor | Sequence[Tensor] | None = None,
    apply: Literal["combine", "backward"] = "combine",
    collect: Literal["loop", "batched", "ghost"] = "loop",
    rows_dtype: torch.dtype | None = None,
    check: bool = False,
    on_report: Callable[[Report], object] | None = None,
) -> Tensor:
    """The sum of the losses as one loss whose own backward pass balances.

    `MTLOptimizer.loss` without an optimizer, for loops with several: all parameters of one model
    are balanced together, whichever optimizer steps them. It does not accumulate: each backward
    pass combines.

    Args:
        losses, params, method: as for `mtlkernels.backward`.
        shared, weight_heads, parts, measure, features, apply, collect, rows_dtype, check: as for
            `mtlkernels.backward`.
        on_report: called with the step's report once .grad is written.

    Returns:
        0-d tensor; see `MTLOptimizer.loss`.

    Raises:
        TypeError, ValueError: losses or an option are not what they have to be. What else
            `mtlkernels.backward` raises, the backward pass raises, with .grad as it was.
        RuntimeError: in the backward pass, if it is the second or has create_graph=True.
        NotImplementedError: torch.compile traces, or in the backward pass as
            `mtlkernels.backward`.
    """
    options = Options(
        shared=shared,
        weight_heads=weight_heads,
        parts=parts,
        measure=measure,
        apply=apply,
        collect=collect,
        rows_dtype=rows_dtype,
    )
    check_method(method)
    options.check(method, features is not None)
    check_list(params, "params")
    held = list(params)
    checks = SelfCheck() if check else None
    in_place = features is not None or options.weighted or keeps_weights(method)

    def balance_now(given: Losses, scale: Tensor | None, retain_graph: bool) -> None:
        with restored(held, in_place):
            report = LOCAL.step(
                StepArguments(given, held, method, options, features, scale, retain_graph, checks)
            )
        if on_report is not None:
            on_report(report)

    return balanced_sum(losses, balance_now)


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
            The report then has each part's Gram matrix; the direction is the one without parts,
            unless the method is a `PerPart`, which weighs each part on its own.

    Returns:
        The direction, P tensors in the shapes and strides of their parameters (of each first
        gradient if `params` is not given), None where all tasks have None; they are views of one
        flat vector for each dtype and device. And the report of the step, see `Report`.

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
    if parts is not None:
        tell_parts(method, len(parts))
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
