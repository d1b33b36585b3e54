"""Weights -> the direction, as tensors or added to .grad."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mtlkernels import ops
from mtlkernels.aggregation.layout import Group
from mtlkernels.aggregation.weighting import Balanced


def weighted_sum(groups: Sequence[Group], weights: Tensor, num_params: int) -> list[Tensor | None]:
    """sum_t w_t g_t as P tensors, None where no task has a gradient."""
    direction: list[Tensor | None] = [None] * num_params
    place(direction, groups, combined(groups, weights))
    return direction


def combine_group(group: Group, weights: Tensor) -> Tensor:
    """sum_t w_t g_t as the group's flat direction."""
    weights = weights.to(group.device)
    grads = group.grads
    if group.direction_dtype == grads[0].dtype:
        return ops.combine(grads, weights)
    flat = torch.empty(group.offsets[-1], dtype=group.direction_dtype, device=group.device)
    ops.combine_out(grads, weights, flat, 0.0)
    return flat


def combined(groups: Sequence[Group], weights: Tensor) -> list[Tensor]:
    """sum_t w_t g_t as a flat direction for each group."""
    return [combine_group(group, weights) for group in groups]


def place(direction: list[Tensor | None], groups: Sequence[Group], flats: Sequence[Tensor]) -> None:
    """Writes the groups' flat directions into P places, as their parameters' views."""
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
