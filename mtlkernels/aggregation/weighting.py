"""Gradients and a method -> weights, or a row method's directions, and their status."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn

from mtlkernels import ops
from mtlkernels.aggregation.families import (
    RowWeighting,
    Weighting,
    check_method,
    takes_rows,
    weighs_losses,
)
from mtlkernels.aggregation.layout import Group
from mtlkernels.report import Status

HEADS_ALONE = ", heads alone: no shared parameter is reached"  # after how gradients came about


@dataclass
class Balanced:
    """A method's answer for one step.

    Attributes:
        directions: one a group, where it is a row method's.
        head_weights: what heads are to be multiplied by; None where they are plain.
    """

    gram: Tensor | None
    weights: Tensor | None
    status: Tensor
    directions: list[Tensor] | None = None
    head_weights: Tensor | None = None


def balance(
    sections: Sequence[Sequence[Group]],
    num_tasks: int,
    method: Weighting | RowWeighting,
    losses: Tensor | None,
    parts: bool,
    scale: Tensor | None = None,
    weight_heads: bool = False,
) -> Balanced:
    """What the method answers to the gradients of the only section, or with parts of each.

    scale: what the gradients are longer by than the losses' own; a scalar. The method never sees
        it, and the direction has it again.
    """
    if takes_rows(method):
        if parts:
            raise ValueError(
                f"parts= does not apply to {type(method).__name__}: it takes whole gradients, not "
                "a Gram matrix for each part"
            )
        return _solve_rows(method, sections[0], num_tasks, losses, scale, weight_heads)
    gram = section_grams(sections, num_tasks, parts)
    return balance_gram(gram, cast(Weighting, method), losses, scale, weight_heads)


def balance_gram(
    gram: Tensor,
    method: Weighting,
    losses: Tensor | None,
    scale: Tensor | None = None,
    weight_heads: bool = False,
) -> Balanced:
    """`balance` of gradients of which K is known, (T, T) or with parts (B, T, T)."""
    if gram.dim() == 3 and not takes_parts(method):
        whole = balance_gram(gram.sum(dim=0), method, losses, scale, weight_heads)
        assert whole.weights is not None
        by_part = gram if scale is None else gram / _divisor(scale).to(gram).square()
        return replace(whole, gram=by_part, weights=whole.weights.expand(len(gram), -1))
    if scale is not None:
        gram = gram / _divisor(scale).to(gram).square()
    weights, status = solve(method, gram, losses)
    heads = None
    if weight_heads:
        rule = getattr(method, "head_weights", None)
        heads = weights if rule is None else rule(gram, losses, weights)
    return Balanced(gram, weights, status, head_weights=heads)


def takes_parts(method: object) -> bool:
    """Whether the method weighs each part on its own, as `PerPart` does.

    Raises:
        TypeError: it does not, but a method inside it does.
    """
    if getattr(method, "takes_parts", False):
        return True
    inside = method.modules() if isinstance(method, nn.Module) else ()
    if any(getattr(inner, "takes_parts", False) for inner in inside):
        name = type(method).__name__
        raise TypeError(
            f"{name} takes one Gram matrix, and the PerPart inside it one a part: give parts= to "
            f"PerPart({name}(...))"
        )
    return False


def _divisor(scale: Tensor) -> Tensor:
    """What scaled gradients are divided by: of gradients scaled by 0, which are 0, it is 1."""
    return torch.where(scale == 0, 1.0, scale)


def unasked(
    method: Weighting | RowWeighting, num_tasks: int, losses: Tensor, num_parts: int | None = None
) -> Balanced:
    """The answer where no parameter is to be balanced: the method is not asked, its state stays.

    K is 0, the weights are 1 and the status of finite losses says ZERO_GRADIENT.
    """
    if takes_rows(method):
        one = torch.ones(num_tasks, dtype=torch.float64, device=losses.device)
        status = torch.where(losses.isfinite(), Status.ZERO_GRADIENT.value, Status.NON_FINITE.value)
        return Balanced(None, one if method.weighs else None, status, [])
    return balance_gram(no_gram(num_tasks, losses.device, num_parts), Unasked(), losses)


def no_gram(num_tasks: int, device: torch.device, num_parts: int | None = None) -> Tensor:
    """K of no parameter: (T, T) zeros, with parts (B, T, T)."""
    shape = (num_tasks, num_tasks) if num_parts is None else (num_parts, num_tasks, num_tasks)
    return torch.zeros(shape, dtype=torch.float64, device=device)


class Unasked:
    """In the place of a method where K is of no parameter: weights 1, NaN where K says so."""

    status: Tensor

    def __call__(self, gram: Tensor, losses: Tensor | None = None) -> Tensor:
        self.status = ops.task_status(gram)
        if losses is not None:
            bad = torch.where(losses.isfinite(), 0, Status.NON_FINITE.value).to(gram.device)
            self.status = torch.where(bad == 0, self.status, bad)
        return 1 + 0 * gram.diagonal()


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
    check_losses(losses, gram.shape[-1])
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
    weight_heads: bool,
) -> Balanced:
    _refuse_nothing(groups)
    check_losses(losses, num_tasks)
    lists: list[list[Tensor]] = [group.grads for group in groups]
    if scale is not None:  # states last longer than a scale, so the rows go in without it
        unit = _divisor(scale)
        lists = [[grad / unit.to(grad) for grad in grads] for grads in lists]
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
    heads = None
    if weight_heads:
        own = getattr(step, "head_weights", None)  # a person's own answer may lack it
        heads = weights if own is None else own
    return Balanced(gram, weights, status, directions, heads)


def check_losses(losses: Tensor | None, num_tasks: int) -> None:
    """Raises ValueError unless there is one loss a task, or none at all."""
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
