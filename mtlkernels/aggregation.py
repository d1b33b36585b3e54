"""Per-task gradients and a method -> one direction and a report: gram, weights, combine.

A row method takes the gradients themselves and answers with directions; see `balance`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeGuard, cast

import torch
from torch import Tensor, nn

from mtlkernels import ops
from mtlkernels.layout import Group, TaskGrads, check_lengths, group_gradients
from mtlkernels.report import Report, Status, direction_norm


class Weighting(Protocol):
    """What a Gram method is to this file; `status` is its word on the last call."""

    status: Tensor

    def __call__(self, gram: Tensor, losses: Tensor | None = None) -> Tensor: ...


class KeptWeighting(Weighting, Protocol):
    """What a Gram method is that may know its weights before anything is measured."""

    def kept_weights(self, tasks: tuple[str, ...], read: bool = False) -> Tensor | None: ...
    def count(self, tasks: tuple[str, ...]) -> None: ...


class LossWeighting(Protocol):
    """What a loss method is: T losses in, a scalar that is differentiable in them out."""

    family: str
    status: Tensor

    def __call__(self, losses: Tensor) -> Tensor: ...

    def parameters(self) -> Iterator[nn.Parameter]: ...


class RowAnswer(Protocol):
    """What a row method answers: flat directions, and weights and a Gram matrix or None."""

    @property
    def directions(self) -> list[Tensor]: ...
    @property
    def weights(self) -> Tensor | None: ...
    @property
    def gram(self) -> Tensor | None: ...


class RowWeighting(Protocol):
    """What a row method is: gradient lists in, flat directions out."""

    family: str
    weighs: bool
    status: Tensor

    def __call__(
        self, lists: Sequence[Sequence[Tensor]], num_tasks: int, losses: Tensor | None = None
    ) -> RowAnswer: ...


@dataclass
class Balanced:
    """A method's answer for one step; `directions`, one a group, where it is a row method's."""

    gram: Tensor | None
    weights: Tensor | None
    status: Tensor
    directions: list[Tensor] | None = None


def weighs_losses(method: object) -> TypeGuard[LossWeighting]:
    """Whether a method looks at the losses alone, so that one backward does."""
    return getattr(method, "family", None) == "loss"


def keeps_weights(method: object) -> TypeGuard[KeptWeighting]:
    """Whether a method may know its weights before anything is measured."""
    return hasattr(method, "kept_weights")


def takes_rows(method: object) -> TypeGuard[RowWeighting]:
    """Whether a method looks at the gradients themselves."""
    return getattr(method, "family", None) == "row"


def check_method(method: object) -> None:
    """Raises TypeError unless method is an object that can be called; its class is not one."""
    if isinstance(method, type) or not callable(method):
        given = "the class" if isinstance(method, type) else "a"
        name = method.__name__ if isinstance(method, type) else type(method).__name__
        raise TypeError(f"method is {given} {name}: give a method, for example mtlkernels.PCGrad()")


def aggregate(
    task_grads: TaskGrads,
    method: Weighting | RowWeighting,
    losses: Tensor | None = None,
    *,
    params: Sequence[Tensor] | None = None,
    tasks: Sequence[str] | None = None,
    parts: Sequence[Sequence[int]] | None = None,
) -> tuple[list[Tensor | None], Report]:
    """The update direction of a method for given per-task gradients.

    Args:
        task_grads: T lists of P tensors or None; None says the task does not reach the parameter.
        method: a Gram method, for example `PCGrad()`, or a row method, for example `GradDrop()`.
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
        report: Gram matrix, weights, status and what follows from them. A row method has its own,
            see `Report`.

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
    found = balance(sections, len(task_grads), method, losses, parts is not None)
    names = tuple(tasks) if tasks is not None else tuple(str(t) for t in range(len(task_grads)))
    report = Report(
        names,
        None if found.gram is None else found.gram.detach(),
        None if found.weights is None else found.weights.detach(),
        None if losses is None else losses.detach(),
        found.status.detach(),
    )
    return _direction(sections, found, len(task_grads[0])), report


def balance(
    sections: Sequence[Sequence[Group]],
    num_tasks: int,
    method: Weighting | RowWeighting,
    losses: Tensor | None,
    parts: bool,
    scale: Tensor | None = None,
    max_norm: float | None = None,
) -> Balanced:
    """What the method answers to the gradients of the only section, or with parts of each.

    scale: what the gradients are longer by than the losses' own; a scalar. The method never sees
        it, and the direction has it again.
    max_norm: the greatest length of the direction, without that scale.
    """
    if takes_rows(method):
        if parts:
            raise ValueError(
                f"parts= does not apply to {type(method).__name__}: it takes whole gradients, not "
                "a Gram matrix for each part"
            )
        return _solve_rows(method, sections[0], num_tasks, losses, scale)
    gram = section_grams(sections, num_tasks, parts)
    return balance_gram(gram, cast(Weighting, method), losses, scale, max_norm)


def balance_gram(
    gram: Tensor,
    method: Weighting,
    losses: Tensor | None,
    scale: Tensor | None = None,
    max_norm: float | None = None,
) -> Balanced:
    """`balance` of gradients of which K is known."""
    if scale is not None:
        gram = gram / scale.to(gram).square()
    weights, status = solve(method, gram, losses)
    if max_norm is not None:
        weights = clip_weights(weights, gram, max_norm)
    return Balanced(gram, weights, status)


def clip_weights(weights: Tensor, gram: Tensor, max_norm: float) -> Tensor:
    """The weights of a direction of at most that length, which K gives without a pass over it."""
    return weights * (max_norm / direction_norm(weights, gram)).clamp_max(1)


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
    _refuse_nothing(groups)
    gram = _group_gram(groups[0], num_tasks)
    for group in groups[1:]:
        gram = gram + _group_gram(group, num_tasks).to(gram.device)
    return gram


def _group_gram(group: Group, num_tasks: int) -> Tensor:
    gram = ops.gram(group.grads, num_tasks)
    return gram if group.copies == 1 else gram / group.copies


def _refuse_nothing(groups: Sequence[Group]) -> None:
    if not groups:
        raise ValueError("no task reaches any parameter: there is nothing to combine")


def solve(method: Weighting, gram: Tensor, losses: Tensor | None) -> tuple[Tensor, Tensor]:
    """The method's weights and status; K's own status where the method leaves none."""
    check_method(method)
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
    _check_losses(losses, gram.shape[-1])
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


def _solve_rows(
    method: RowWeighting,
    groups: Sequence[Group],
    num_tasks: int,
    losses: Tensor | None,
    scale: Tensor | None,
) -> Balanced:
    _refuse_nothing(groups)
    _check_losses(losses, num_tasks)
    lists: list[list[Tensor]] = [group.grads for group in groups]
    if scale is not None:  # states last longer than a scale, so the rows go in without it
        lists = [[grad / scale.to(grad) for grad in grads] for grads in lists]
    step = method(lists, num_tasks, losses)
    directions, weights, gram = step.directions, step.weights, step.gram
    name = type(method).__name__
    want = [(group.offsets[-1], group.rows[0][0].dtype, group.device) for group in groups]
    have = [(flat.numel(), flat.dtype, flat.device) for flat in directions]
    if have != want or any(flat.dim() != 1 for flat in directions):
        raise ValueError(
            f"{name} must return a flat direction for each gradient list, as long as ops.combine's "
            "and of its dtype and device"
        )
    if method.weighs != (weights is not None) or (gram is not None and weights is None):
        raise ValueError(
            f"{name} must return weights where its class says weighs = True, and only there"
        )
    if weights is not None and weights.shape != (num_tasks,):
        raise ValueError(f"{name} must return a weight for each of {num_tasks} tasks")
    status = getattr(method, "status", None)
    if not isinstance(status, Tensor) or status.shape != (num_tasks,):
        status = _known_status(gram, losses, num_tasks, groups[0].device)
    if scale is not None:
        directions = [direction * scale.to(direction) for direction in directions]
    return Balanced(gram, weights, status, directions)


def _check_losses(losses: Tensor | None, num_tasks: int) -> None:
    if losses is not None and losses.shape != (num_tasks,):
        raise ValueError(f"{losses.numel()} losses were given for {num_tasks} tasks")


def _known_status(
    gram: Tensor | None, losses: Tensor | None, num_tasks: int, device: torch.device
) -> Tensor:
    if gram is not None:
        return ops.task_status(gram)
    if losses is not None:
        return torch.where(losses.isfinite(), 0, Status.NON_FINITE.value)
    return torch.zeros(num_tasks, dtype=torch.int64, device=device)


def _direction(
    sections: Sequence[Sequence[Group]], found: Balanced, num_params: int
) -> list[Tensor | None]:
    """The direction as P tensors, None where no task has a gradient."""
    direction: list[Tensor | None] = [None] * num_params
    for groups, flats in zip(sections, _flat_directions(sections, found), strict=True):
        _place(direction, groups, flats)
    return direction


def _flat_directions(
    sections: Sequence[Sequence[Group]], found: Balanced
) -> Iterator[list[Tensor]]:
    if found.directions is not None:
        yield found.directions
        return
    assert found.weights is not None
    for groups, own in zip(sections, found.weights.view(len(sections), -1), strict=True):
        yield _combined(groups, own)


def weighted_sum(groups: Sequence[Group], weights: Tensor, num_params: int) -> list[Tensor | None]:
    """sum_t w_t g_t as P tensors, None where no task has a gradient."""
    direction: list[Tensor | None] = [None] * num_params
    _place(direction, groups, _combined(groups, weights))
    return direction


def _combined(groups: Sequence[Group], weights: Tensor) -> list[Tensor]:
    return [combine_group(group, weights) for group in groups]


def combine_group(group: Group, weights: Tensor) -> Tensor:
    """sum_t w_t g_t as the group's flat direction."""
    weights = weights.to(group.device)
    grads = group.grads
    if group.direction_dtype == grads[0].dtype:
        return ops.combine(grads, weights)
    flat = torch.empty(group.offsets[-1], dtype=group.direction_dtype, device=group.device)
    ops.combine_out(grads, weights, flat, 0.0)
    return flat


def _place(
    direction: list[Tensor | None], groups: Sequence[Group], flats: Sequence[Tensor]
) -> None:
    for group, flat in zip(groups, flats, strict=True):
        for p, view in zip(group.params, group.views(flat), strict=True):
            direction[p] = view


def add_direction(
    sections: Sequence[Sequence[Group]], found: Balanced, members: Sequence[Sequence[Tensor]]
) -> None:
    """Adds the direction to the parameters' .grad, see `add_weighted_sum`; `members` by section."""
    if found.directions is None:
        assert found.weights is not None
        rows = found.weights.view(len(sections), -1)
        for groups, own, params in zip(sections, rows, members, strict=True):
            add_weighted_sum(groups, own, params)
        return
    for group, direction in zip(sections[0], found.directions, strict=True):
        add_flat(group, direction, members[0])


def add_flat(group: Group, direction: Tensor, params: Sequence[Tensor]) -> None:
    """Adds a group's flat direction to its parameters' .grad, which become views of it if None."""
    members = [params[p] for p in group.params]
    flat = group.flat_behind([member.grad for member in members])
    if flat is not None:
        flat.add_(direction)
    else:
        _add_grads(group, direction, members)


def add_weighted_sum(groups: Sequence[Group], weights: Tensor, params: Sequence[Tensor]) -> None:
    """Adds sum_t w_t g_t to the parameters' .grad, as autograd does: a missing one is created.

    Gradients that an earlier call created are added to in place and in one pass, so their
    addresses stay.
    """
    for group in groups:
        members = [params[p] for p in group.params]
        flat = group.flat_behind([member.grad for member in members])
        if flat is not None:
            ops.combine_out(group.grads, weights.to(group.device), flat, 1.0)
        else:
            _add_grads(group, combine_group(group, weights), members)


def _add_grads(group: Group, flat: Tensor, members: Sequence[Tensor]) -> None:
    for member, grad in zip(members, group.grads_of(flat), strict=True):
        if member.grad is None:
            member.grad = grad
        else:
            member.grad.add_(grad)
