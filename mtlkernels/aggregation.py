"""Per-task gradients and a method -> one direction and a report: gram, weights, combine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol, TypeGuard

from torch import Tensor, nn

from mtlkernels import ops
from mtlkernels.layout import Group, TaskGrads, group_gradients
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
) -> tuple[list[Tensor | None], Report]:
    """The update direction of a method for given per-task gradients.

    Args:
        task_grads: T lists of P tensors or None; None says the task does not reach the parameter.
        method: a Gram method, for example `PCGrad()`.
        losses: (T) the tasks' losses, for methods that use them.
        params: the P parameters; the direction then takes their strides.
        tasks: T names for the report.

    Returns:
        direction: P tensors in the shapes and strides of their parameters (of each first gradient
            where `params` is not given), None where all tasks have None. They are views of one flat
            vector for each dtype and device.
        report: Gram matrix, weights, status and what follows from them.

    Raises:
        ValueError, TypeError: gradients that do not fit together, see `layout.group_gradients`; no
            gradient at all; or a loss method.
    """
    groups = group_gradients(task_grads, params)
    gram = total_gram(groups, len(task_grads))
    weights, status = solve(method, gram, losses)
    names = tuple(tasks) if tasks is not None else tuple(str(t) for t in range(len(task_grads)))
    report = Report(
        names,
        gram.detach(),
        weights.detach(),
        None if losses is None else losses.detach(),
        status.detach(),
    )
    return weighted_sum(groups, weights, len(task_grads[0])), report


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
    weights = method(gram, losses)
    if not isinstance(weights, Tensor) or weights.shape != (len(gram),):
        have = tuple(weights.shape) if isinstance(weights, Tensor) else type(weights).__name__
        raise ValueError(f"the method returned {have}, not a weight for each of {len(gram)} tasks")
    status = getattr(method, "status", None)
    if not isinstance(status, Tensor) or status.shape != weights.shape:
        status = ops.task_status(gram)
    return weights, status


def weighted_sum(groups: Sequence[Group], weights: Tensor, num_params: int) -> list[Tensor | None]:
    """sum_t w_t g_t as P tensors, None where no task has a gradient."""
    direction: list[Tensor | None] = [None] * num_params
    for group in groups:
        flat = ops.combine(group.grads, weights.to(group.device))
        for p, view in zip(group.params, group.views(flat), strict=True):
            direction[p] = view
    return direction


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
