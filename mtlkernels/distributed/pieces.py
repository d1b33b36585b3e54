"""Rows of which this rank holds a piece: its part of K, all ranks' weights, its piece of .grad."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mtlkernels.aggregation.direction import add_weighted_sum
from mtlkernels.aggregation.families import Weighting
from mtlkernels.aggregation.layout import Group, group_gradients
from mtlkernels.aggregation.weighting import HEADS_ALONE, Unasked, no_gram, section_grams
from mtlkernels.autograd.task_gradients import Rows
from mtlkernels.distributed.local_parameters import Held
from mtlkernels.distributed.setting import Setting
from mtlkernels.distributed.verdict import Totals
from mtlkernels.engine.gradient_step import columns
from mtlkernels.engine.options import Options
from mtlkernels.report import Report


def combine_pieces(
    rows: Rows,
    held: Held,
    sections: Sequence[Sequence[int]],
    heads: Sequence[int],
    method: Weighting,
    options: Options,
    totals: Totals,
    setting: Setting,
    doubt: Tensor | None = None,
    asked: bool = True,
) -> Report:
    """Adds this rank's piece of the direction to .grad.

    Args:
        rows: pieces of T gradients.
        held: their parameters.
        sections: positions of what is balanced, part by part.
        heads: positions of the other parameters that a task reaches.
        method, options, setting: how.
        totals: where the ranks' parts of K add up.
        doubt: (T) 0, or NaN for a task that this rank knows to be spoilt although K does not.
        asked: whether any rank has something to balance.
    """
    grads = rows.grads
    groups = piece_groups(grads, held, sections)
    gram = piece_gram(groups, len(grads), options.parts is not None, rows.losses.device)
    if doubt is not None:
        gram = gram + doubt.to(gram.device).diag()
    collected = rows.collected
    if not asked:
        method, collected = Unasked(), collected + HEADS_ALONE
    found, losses = totals.judge(
        gram, rows.losses, method, rows.scale, options.weight_heads, setting
    )
    assert found.weights is not None
    for part, own, weights in zip(
        sections, groups, found.weights.view(len(sections), -1), strict=True
    ):
        add_weighted_sum(own, weights, [held.tensors[p] for p in part])
    members = [held.tensors[p] for p in heads]
    # What another rank skips, one that holds heads alone has to skip as well.
    ones = torch.where(found.weights.isfinite().all(), 1.0, torch.nan).to(found.weights)
    head_weights = ones.expand(len(grads)) if found.head_weights is None else found.head_weights
    add_weighted_sum(group_gradients(columns(grads, heads), members), head_weights, members)
    held.hand_back()
    return Report(rows.tasks, found.gram, found.weights, losses, found.status, collected)


def piece_groups(
    grads: Sequence[Sequence[Tensor | None]], held: Held, sections: Sequence[Sequence[int]]
) -> list[list[Group]]:
    """This rank's pieces of T rows in groups, section by section."""
    return [
        group_gradients(
            columns(grads, part),
            [held.tensors[p] for p in part],
            [held.copies[p] for p in part],
        )
        for part in sections
    ]


def piece_gram(
    sections: Sequence[Sequence[Group]], num_tasks: int, parts: bool, device: torch.device
) -> Tensor:
    """`section_grams`, and zeros where no task reaches anything that this rank holds."""
    if any(sections):
        return section_grams(sections, num_tasks, parts)
    return no_gram(num_tasks, device, len(sections) if parts else None)
