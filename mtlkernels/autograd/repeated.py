"""The self-check of steps that store no task gradients: two passes must give equal gradients."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mtlkernels.autograd.backwards import Row, gradients_below
from mtlkernels.autograd.cut import Cut
from mtlkernels.autograd.trial import Trial


def try_twice(
    cut: Cut,
    cotangents: Sequence[Row],
    params: Sequence[Tensor],
    members: Sequence[int],
    trial: Trial,
) -> Row:
    """Runs two passes from the cut, which must give equal gradients and write no .grad.

    Args:
        cut: where the graph is cut; its graph is retained.
        cotangents: T lists of the gradients at its edges.
        params: P parameters.
        members: the positions of those that the step reaches in several passes; the check passes if
            there are none.
        trial: compares the two passes.

    Returns:
        P gradients of the first pass, None elsewhere.

    Raises:
        SelfCheckError: the gradients differ, or a pass wrote a .grad.
    """
    trial.compared = not members
    if not members:
        return [None] * len(params)
    seeds: Row = []
    for column in zip(*cotangents, strict=True):
        known = [c for c in column if c is not None]
        seeds.append(sum(known[1:], known[0]) if known else None)
    given = [params[p] for p in members]
    rows: list[Row] = []
    with trial.watched():
        for again in (False, True):
            grads = gradients_below(cut, seeds, given, retain_graph=True, again=again)
            row: Row = [None] * len(params)
            for p, grad in zip(members, grads, strict=True):
                row[p] = None if grad is None else grad.clone()
            rows.append(row)
    trial.refer_to(rows[0], cut.edges)
    trial.add(rows[1])
    trial.judge()
    return rows[0]
