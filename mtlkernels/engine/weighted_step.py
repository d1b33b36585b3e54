"""One weighted backward through the trunk, with weights from less than all rows over it.

The tasks' backwards run to the cut below their heads. There the weights are found: on parameters
that are named, on features, on rows that are seen but not kept, or from an earlier step. One
backward of sum_t w_t c_t takes the cut's gradients c_t to the parameters below it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from mtlkernels import ops
from mtlkernels.aggregation.direction import add_weighted_sum, weighted_sum
from mtlkernels.aggregation.families import AnyMethod, Weighting
from mtlkernels.aggregation.layout import group_gradients
from mtlkernels.aggregation.weighting import (
    HEADS_ALONE,
    Balanced,
    balance,
    balance_gram,
    total_gram,
    unasked,
)
from mtlkernels.autograd.backwards import (
    Above,
    Row,
    add_below,
    gradients_above,
    gradients_below,
    stack,
    starts,
    visit_rows_below,
    without_hooks,
)
from mtlkernels.autograd.cut import Cut, cut_at_features, cut_at_heads
from mtlkernels.autograd.repeated import try_twice
from mtlkernels.autograd.self_check import SelfCheck
from mtlkernels.engine.ghost_gram import check_ghosts, gram_of_ghosts
from mtlkernels.engine.options import Options
from mtlkernels.engine.parameters import refuse_reentrant_checkpoints, shared_positions, trainable
from mtlkernels.report import Report, Status


def backward_weighted(
    tasks: tuple[str, ...],
    values: Sequence[Tensor],
    params: Sequence[Tensor],
    method: AnyMethod,
    options: Options,
    features: Sequence[Tensor] | None,
    kept: Tensor | None,
    scale: Tensor | None,
    retain_graph: bool,
    check: SelfCheck | None = None,
) -> Report:
    """One weighted backward, with kept weights or with those of what is measured."""
    losses = stack(values)
    heads = run_heads(values, params, options, features, scale, retain_graph)
    summed: Row | None = None
    if check is not None and (trial := check.trial(tasks, params)) is not None:
        members = _run_again(heads, params, options, kept is None and features is None)
        summed = try_twice(heads.cut, heads.above.cotangents, params, members, trial)
        reach = [{*own, *heads.cut.below} for own in heads.cut.above]
        check.saw(tasks, params, reach, trial)
    if not heads.balanced:
        where = f"unweighted{HEADS_ALONE}"
        found = unasked(cast(Weighting, method), len(tasks), losses)
    elif kept is not None:
        where = "with kept weights"
        status = torch.where(losses.isfinite(), 0, Status.NON_FINITE.value)
        own = kept_head_weights(method, kept) if options.weight_heads else None
        found = Balanced(None, kept, status, head_weights=own)
    elif options.collect == "ghost":
        gram, share = gram_of_ghosts(heads.cut, heads.above, params, heads.balanced, losses.device)
        where = f"measured on {share}"
        if summed is not None:
            check_ghosts(gram, summed, heads.above, heads.balanced)
        found = balance_gram(gram, cast(Weighting, method), losses, scale, options.weight_heads)
    else:
        named = "all rows" if options.measure is None else "given parameters"
        where = f"measured on {named if features is None else 'features'}"
        weigh, on_features = cast(Weighting, method), features is not None
        found = measured_weights(heads, params, weigh, losses, options, on_features, scale)
    assert found.weights is not None
    again = kept is None and features is None
    write_weighted(heads, params, found.weights, found.head_weights, retain_graph, again=again)
    collected = f"one weighted backward, {where}"
    return Report(tasks, found.gram, found.weights, losses, found.status, collected)


def kept_head_weights(method: AnyMethod, kept: Tensor) -> Tensor:
    """(T) what a method that keeps its weights keeps for heads."""
    heads: Tensor = getattr(method, "heads", kept)
    return heads if len(heads) else kept


@dataclass(frozen=True)
class Heads:
    """A step's graph, and its backwards down to the cut.

    Attributes:
        cut: where the graph is cut.
        above: what the T backwards gave down to there.
        balanced: the parameters, by position, that the method balances, and K is of.
    """

    cut: Cut
    above: Above
    balanced: set[int]


def run_heads(
    losses: Sequence[Tensor],
    params: Sequence[Tensor],
    options: Options,
    features: Sequence[Tensor] | None = None,
    scale: Tensor | None = None,
    retain_graph: bool = False,
    decide: Callable[[], set[int]] | None = None,
) -> Heads:
    """The tasks' backwards down to the cut.

    decide: which parameters, by position, are to be balanced; without it this graph says.

    Raises:
        ValueError: no parameter is reached, or features are none.
    """
    begun = starts(losses, scale)
    if features is None or _without_graph(features):
        cut = cut_at_heads(begun.edges, params)
        if features is not None and max(cut.reached) > 1:
            cut = cut_at_features(begun.edges, features, params)  # which says what is wrong
    else:
        cut = cut_at_features(begun.edges, features, params)
    refuse_reentrant_checkpoints(losses, cut.reached)
    if decide is None:
        balanced = shared_positions(cut.reached, len(losses), params, options.shared)
    else:
        balanced = decide()
    # Hooks at the cut are for the one backward below, which a hook may wait for to remove itself.
    both = set().union(*cut.above)
    hooked = [params[p] for p in cut.below if p not in both] + list(features or ())
    with without_hooks(hooked):
        above = gradients_above(begun, cut, params, retain_graph)
    return Heads(cut, above, balanced)


def _without_graph(features: Sequence[Tensor]) -> bool:
    """Whether features are what a frozen trunk returns."""
    given = list(features) if isinstance(features, Sequence) else []
    return bool(given) and all(isinstance(z, Tensor) and not z.requires_grad for z in given)


def _run_again(
    heads: Heads, params: Sequence[Tensor], options: Options, measures: bool
) -> list[int]:
    """The parameters below the cut, by position, to which several backward passes of a step run.

    measures: whether the step measures task gradients below the cut.
    """
    below, balanced = heads.cut.below, heads.balanced
    if not options.weight_heads and 0 < sum(p in balanced for p in below) < len(below):
        return below  # one pass with the weights, and one without
    if not measures:
        return []
    if options.measure is None:
        return [p for p in below if p in balanced]
    measured = {id(param) for param in options.measure}
    return [p for p in below if id(params[p]) in measured]


def measured_weights(
    heads: Heads,
    params: Sequence[Tensor],
    method: Weighting,
    losses: Tensor,
    options: Options,
    on_features: bool,
    scale: Tensor | None,
) -> Balanced:
    """The method's answer to what is measured: parameters, features, or all rows one at a time."""
    tasks = len(heads.above.rows)
    if on_features:
        return balance_features(heads.above.cotangents, method, losses, scale, options.weight_heads)
    if options.measure is not None:
        measure = trainable(options.measure, params, "measure")
        groups = group_gradients(gradients_of(heads, params, measure), measure)
        if not groups:
            raise ValueError("no loss reaches any of the parameters that measure= names")
        return balance([groups], tasks, method, losses, False, scale, options.weight_heads)
    gram = _gram_of_all_rows(heads, params, losses.device)
    return balance_gram(gram, method, losses, scale, options.weight_heads)


def gradients_of(heads: Heads, params: Sequence[Tensor], members: Sequence[Tensor]) -> list[Row]:
    """T backwards from the cut to some parameters and no further, with what they get above it."""
    place = {id(param): p for p, param in enumerate(params)}
    rows = []
    passes = zip(heads.above.rows, heads.above.cotangents, strict=True)
    for t, (above, cotangents) in enumerate(passes):
        below = gradients_below(heads.cut, cotangents, members, True, again=t > 0)
        own = [above[place[id(member)]] for member in members]
        rows.append([_sum(a, b) for a, b in zip(own, below, strict=True)])
    return rows


def _gram_of_all_rows(heads: Heads, params: Sequence[Tensor], device: torch.device) -> Tensor:
    tasks = len(heads.above.rows)
    gram = torch.zeros(tasks, tasks, dtype=torch.float64, device=device)
    columns = dict(enumerate(zip(*heads.above.rows, strict=True)))
    above = {
        p: list(column)
        for p, column in columns.items()
        if p in heads.balanced and any(grad is not None for grad in column)
    }
    members = [p for p in heads.cut.below if p in heads.balanced]

    def visit(at: int, rows: Tensor) -> None:
        p = members[at]
        column: list[Tensor | None] = list(rows.unbind())
        if p in above:
            column = [_sum(a, b) for a, b in zip(column, above.pop(p), strict=True)]
        add(p, column)

    def add(p: int, column: Sequence[Tensor | None]) -> None:
        nonlocal gram
        for group in group_gradients([[grad] for grad in column], [params[p]]):
            gram = gram + ops.gram(group.grads, tasks).to(device)

    below = [params[p] for p in members]
    visit_rows_below(heads.cut, heads.above.cotangents, below, visit)
    for p, column in above.items():
        add(p, column)
    return gram


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b


def write_weighted(
    heads: Heads,
    params: Sequence[Tensor],
    weights: Tensor,
    head_weights: Tensor | None,
    retain_graph: bool = False,
    into: Sequence[Tensor] | None = None,
    again: bool = False,
) -> None:
    """The backward below the cut, and all .grad.

    weights: (T), of what is balanced.
    head_weights: (T), of all else; None for ones.
    into: whose .grad, if not the parameters' own.
    again: whether another backward ran below the cut before.
    """
    written = params if into is None else into
    cut, above = heads.cut, heads.above
    balanced = heads.balanced
    own_weights = torch.ones_like(weights) if head_weights is None else head_weights
    rest = set(range(len(params))) - balanced
    if head_weights is weights:  # one backward for both
        balanced, rest = balanced | rest, set()
    one = torch.ones_like(weights[:1])
    sums = []  # before anything is written: a gradient that no .grad can hold is refused here
    for places, own in ((balanced, weights), (rest, own_weights)):
        rows = [[grad if p in places else None for p, grad in enumerate(r)] for r in above.rows]
        sums.append((group_gradients(rows, params), own))
    parts = [
        (members, own)
        for places, own in ((rest, own_weights), (balanced, weights))
        if (members := [p for p in cut.below if p in places])
    ]
    for i, (members, own) in enumerate(parts):
        retain = retain_graph or i < len(parts) - 1
        seeds = combine_features(above.cotangents, own)
        given = [params[p] for p in members]
        if into is None:
            add_below(cut, seeds, given, retain, again or i > 0)
            continue
        below: Row = [None] * len(params)
        found = gradients_below(cut, seeds, given, retain, again or i > 0)
        for p, grad in zip(members, found, strict=True):
            below[p] = grad
        sums.append((group_gradients([below], params), one))
    with torch.no_grad():
        for groups, own in sums:
            add_weighted_sum(groups, own, written)


def balance_features(
    cotangents: Sequence[Row],
    method: Weighting,
    losses: Tensor | None,
    scale: Tensor | None,
    weight_heads: bool = False,
) -> Balanced:
    """The method's answer to T tasks' gradients at C tensors of the graph."""
    groups = group_gradients(_real(cotangents))
    return balance([groups], len(cotangents), method, losses, False, scale, weight_heads)


def feature_gram(cotangents: Sequence[Row]) -> Tensor:
    """The Gram matrix of T tasks' gradients at C tensors of the graph."""
    return total_gram(group_gradients(_real(cotangents)), len(cotangents))


def combine_features(cotangents: Sequence[Row], weights: Tensor) -> Row:
    """sum_t w_t c_t at each of C tensors."""
    combined = weighted_sum(group_gradients(_real(cotangents)), weights, len(cotangents[0]))
    columns = zip(*cotangents, strict=True)
    pairs = [any(c is not None and c.is_complex() for c in column) for column in columns]
    return [
        torch.view_as_complex(c) if c is not None and two else c
        for c, two in zip(combined, pairs, strict=True)
    ]


def _real(rows: Sequence[Row]) -> list[Row]:
    """Complex gradients as pairs of real numbers."""
    return [
        [torch.view_as_real(c) if c is not None and c.is_complex() else c for c in row]
        for row in rows
    ]
