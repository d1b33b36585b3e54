"""Per-task gradients and a method -> one direction and a report: gram, weights, combine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol, TypeGuard

import torch
from torch import Tensor, nn

from mtlkernels import ops
from mtlkernels.layout import Group, TaskGrads, check_lengths, group_gradients
from mtlkernels.report import Report


class Weighting(Protocol):
    """What a Gram method is to this file; `status` is its word on the last call."""

    status: Tensor

    def __call__(self, gram: Tensor, losses: Tensor | None = None) -> Tensor: ...


class LossWeighting(Protocol):
    """What a loss method is: T losses in, a scalar that is differentiable in them out."""

    family: str
    status: Tensor

    def __call__(self, losses: Tensor) -> Tensor: ...

    def parameters(self) -> Iterator[nn.Parameter]: ...


def weighs_losses(method: object) -> TypeGuard[LossWeighting]:
    """Whether a method looks at the losses alone, so that one backward does."""
    return getattr(method, "family", None) == "loss"


def aggregate(
    task_grads: TaskGrads,
    method: Weighting,
    losses: Tensor | None = None,
    *,
    params: Sequence[Tensor] | None = None,
    tasks: Sequence[str] | None = None,
    parts: Sequence[Sequence[int]] | None = None,
) -> tuple[list[Tensor | None], Report]:
    """The update direction of a method for given per-task gradients.

    Args:
        task_grads: T lists of P tensors or None; None says the task does not reach the parameter.
        method: a Gram method, for example `PCGrad()`.
        losses: (T) the tasks' losses, for methods that use them.
        params: the P parameters; the direction then takes their strides.
        tasks: T names for the report.
        parts: positions of parameters, for example a list a layer, each position in one list. Each
            part gets weights of its own, from its own Gram matrix; the method is then a
            `PerPart(method, len(parts))`.

    Returns:
        direction: P tensors in the shapes and strides of their parameters (of each first gradient
            where `params` is not given), None where all tasks have None. They are views of one flat
            vector for each dtype and device.
        report: Gram matrix, weights, status and what follows from them.

    Raises:
        ValueError, TypeError: gradients that do not fit together, see `layout.group_gradients`; no
            gradient at all; a loss method; or parts that are no partition of the parameters.
    """
    if parts is None:
        sections = [group_gradients(task_grads, params)]
    else:
        check_lengths(task_grads, params)
        check_partition(parts, len(task_grads[0]))
        sections = [group_part(task_grads, params, part) for part in parts]
    gram = section_grams(sections, len(task_grads), parts is not None)
    weights, status = solve(method, gram, losses)
    names = tuple(tasks) if tasks is not None else tuple(str(t) for t in range(len(task_grads)))
    report = Report(
        names,
        gram.detach(),
        weights.detach(),
        None if losses is None else losses.detach(),
        status.detach(),
    )
    direction: list[Tensor | None] = [None] * len(task_grads[0])
    for groups, own in zip(sections, weights.view(len(sections), -1), strict=True):
        add_views(direction, groups, own)
    return direction, report


def check_partition(parts: Sequence[Sequence[int]], num_params: int) -> None:
    """Raises ValueError unless each of the parameters stands in exactly one part."""
    named = sorted(p for part in parts for p in part)
    if named == list(range(num_params)):
        return
    twice = sorted({p for p in named if named.count(p) > 1})
    alien = [p for p in named if not 0 <= p < num_params]
    missing = sorted(set(range(num_params)) - set(named))
    told = [(alien, "is not there"), (twice, "stands in two parts"), (missing, "is in no part")]
    first = next((where, word) for where, word in told if where)
    raise ValueError(
        f"parts must hold each of the {num_params} parameters once: {first[0][0]} {first[1]}"
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


def section_grams(sections: Sequence[Sequence[Group]], num_tasks: int, parts: bool) -> Tensor:
    """The Gram matrix of the only section, (T, T), or of each, (B, T, T); zeros of an empty one."""
    if not parts:
        return total_gram(sections[0], num_tasks)
    grams = {b: total_gram(groups, num_tasks) for b, groups in enumerate(sections) if groups}
    if not grams:
        return total_gram([], num_tasks)
    model = next(iter(grams.values()))
    zero = torch.zeros_like(model)
    return torch.stack([grams.get(b, zero).to(model.device) for b in range(len(sections))])


def total_gram(groups: Sequence[Group], num_tasks: int) -> Tensor:
    """The Gram matrix over all groups, on the first group's device."""
    if not groups:
        raise ValueError("no task reaches any parameter: there is nothing to combine")
    gram = ops.gram(groups[0].grads, num_tasks)
    for group in groups[1:]:
        gram = gram + ops.gram(group.grads, num_tasks).to(gram.device)
    return gram


def solve(method: Weighting, gram: Tensor, losses: Tensor | None) -> tuple[Tensor, Tensor]:
    """The method's weights and status; K's own status where the method leaves none."""
    if not callable(method):
        raise TypeError(
            f"method is a {type(method).__name__}: give a Gram method, for example "
            "mtlkernels.PCGrad()"
        )
    if weighs_losses(method):
        raise TypeError(
            f"{type(method).__name__} weighs losses and sees no gradients: use "
            "mtlkernels.backward or MTLOptimizer, or a Gram method here"
        )
    if gram.dim() == 3 and not getattr(method, "takes_parts", False):
        raise TypeError(
            f"{type(method).__name__} takes one Gram matrix: with parts= give "
            f"PerPart(method, {len(gram)}), which keeps a copy of it for each part"
        )
    if losses is not None and losses.shape != gram.shape[-1:]:
        raise ValueError(f"{losses.numel()} losses were given for {gram.shape[-1]} tasks")
    weights = method(gram, losses)
    if not isinstance(weights, Tensor) or weights.shape != gram.shape[:-1]:
        have = tuple(weights.shape) if isinstance(weights, Tensor) else type(weights).__name__
        raise ValueError(
            f"the method returned {have}, not a weight for each of {gram.shape[-1]} tasks"
        )
    status = getattr(method, "status", None)
    if not isinstance(status, Tensor) or status.shape != gram.shape[-1:]:
        status = ops.task_status(gram)
    return weights, status


def add_views(direction: list[Tensor | None], groups: Sequence[Group], weights: Tensor) -> None:
    """Puts sum_t w_t g_t of some parameters into their places of a direction."""
    for group in groups:
        flat = ops.combine(group.grads, weights.to(group.device))
        for p, view in zip(group.params, group.views(flat), strict=True):
            direction[p] = view


def add_weighted_sum(groups: Sequence[Group], weights: Tensor, params: Sequence[Tensor]) -> None:
    """Adds sum_t w_t g_t to the parameters' .grad, as autograd does: a missing one is created.

    Gradients that an earlier call created are added to in place and in one pass, so their
    addresses stay.
    """
    for group in groups:
        w = weights.to(group.device)
        members = [params[p] for p in group.params]
        flat = group.flat_behind([member.grad for member in members])
        if flat is not None:
            ops.combine_out(group.grads, w, flat, 1.0)
            continue
        for member, view in zip(members, group.views(ops.combine(group.grads, w)), strict=True):
            if member.grad is None:
                member.grad = view
            else:
                member.grad.add_(view)
