"""One weighted backward through the trunk, with weights from less than all rows over it.

The tasks' backwards run to the cut below their heads. There the weights are found: on parameters
that are named, on features, on rows that are seen but not kept, or from an earlier step. One
backward of sum_t w_t c_t takes the cut's gradients c_t to the parameters below it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mtlkernels import ops
from mtlkernels.aggregation import (
    Balanced,
    Weighting,
    add_weighted_sum,
    balance,
    balance_gram,
    total_gram,
    weighted_sum,
)
from mtlkernels.arguments import Options, trainable
from mtlkernels.collect import (
    Above,
    Row,
    gradients_above,
    gradients_below,
    starts,
    visit_rows_below,
)
from mtlkernels.cut import Cut, cut_at_features, cut_at_heads
from mtlkernels.layout import group_gradients


@dataclass(frozen=True)
class Heads:
    """A step's graph, and its backwards down to the cut."""

    cut: Cut
    above: Above
    weighted_above: list[int]
    weighted_below: list[int]
    plain_below: list[int]


def run_heads(
    losses: Sequence[Tensor],
    params: Sequence[Tensor],
    options: Options,
    features: Sequence[Tensor] | None = None,
    scale: Tensor | None = None,
    retain_graph: bool = False,
    decide: Callable[[Cut], set[int]] | None = None,
) -> Heads:
    """The tasks' backwards down to the cut.

    decide: given the cut, which parameters, by position, the weights are for; else the options say.

    Raises:
        ValueError: no parameter is shared, or features are none.
    """
    begun = starts(losses, scale)
    if features is None:
        cut = cut_at_heads(begun.edges, params)
    else:
        cut = cut_at_features(begun.edges, features, params)
    weighted = _weighted_params(cut, params, options) if decide is None else decide(cut)
    above = gradients_above(begun, cut, params, retain_graph)
    return Heads(
        cut,
        above,
        sorted({p for own in cut.above for p in own} & weighted),
        [p for p in cut.below if p in weighted],
        [p for p in cut.below if p not in weighted],
    )


def _weighted_params(cut: Cut, params: Sequence[Tensor], options: Options) -> set[int]:
    """Positions of the parameters that the weights are for."""
    reached = [sum(p in own for own in map(set, cut.above)) for p in range(len(params))]
    if options.shared is None:
        needed = min(2, len(cut.above))
        weighted = {p for p, count in enumerate(reached) if count >= needed} | set(cut.below)
        if not weighted:
            raise ValueError(
                "no parameter is shared: no two losses reach the same one, so there is nothing to "
                "balance. Use sum(losses).backward(), or name the parameters with shared="
            )
    else:
        place = {id(param): p for p, param in enumerate(params)}
        weighted = {place[id(param)] for param in trainable(options.shared, params)}
        if not any(reached[p] or p in cut.below for p in weighted):
            raise ValueError("no loss reaches any of the parameters that shared= names")
    return set(range(len(params))) if options.weight_heads else weighted


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
        return balance_features(heads.above.cotangents, method, losses, scale)
    if options.measure is not None:
        measure = trainable(options.measure, params, "measure")
        groups = group_gradients(gradients_of(heads, params, measure), measure)
        if not groups:
            raise ValueError("no loss reaches any of the parameters that measure= names")
        return balance([groups], tasks, method, losses, False, scale)
    gram = _gram_of_all_rows(heads, params, losses.device)
    return balance_gram(gram, method, losses, scale, options.max_norm)


def gradients_of(heads: Heads, params: Sequence[Tensor], members: Sequence[Tensor]) -> list[Row]:
    """T backwards from the cut to some parameters and no further, with what they get above it."""
    place = {id(param): p for p, param in enumerate(params)}
    rows = []
    for above, cotangents in zip(heads.above.rows, heads.above.cotangents, strict=True):
        below = gradients_below(heads.cut, cotangents, members, retain_graph=True)
        own = [above[place[id(member)]] for member in members]
        rows.append([_sum(a, b) for a, b in zip(own, below, strict=True)])
    return rows


def _gram_of_all_rows(heads: Heads, params: Sequence[Tensor], device: torch.device) -> Tensor:
    tasks = len(heads.above.rows)
    gram = torch.zeros(tasks, tasks, dtype=torch.float64, device=device)
    above: dict[int, list[Tensor | None]] = {
        p: [row[p] for row in heads.above.rows] for p in heads.weighted_above
    }

    def visit(at: int, rows: Tensor) -> None:
        p = heads.weighted_below[at]
        column: list[Tensor | None] = list(rows.unbind())
        if p in above:
            column = [_sum(a, b) for a, b in zip(column, above.pop(p), strict=True)]
        add(p, column)

    def add(p: int, column: Sequence[Tensor | None]) -> None:
        nonlocal gram
        for group in group_gradients([[grad] for grad in column], [params[p]]):
            gram = gram + ops.gram(group.grads, tasks).to(device)

    below = [params[p] for p in heads.weighted_below]
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
    retain_graph: bool = False,
    into: Sequence[Tensor] | None = None,
) -> None:
    """The backward below the cut, and all .grad; `into`: whose, if not the parameters' own."""
    written = params if into is None else into
    cut, above = heads.cut, heads.above
    ones = torch.ones_like(weights)
    below: Row = [None] * len(params)
    parts = [(heads.plain_below, ones), (heads.weighted_below, weights)]
    parts = [(members, own) for members, own in parts if members]
    for i, (members, own) in enumerate(parts):
        retain = retain_graph or i < len(parts) - 1
        seeds = combine_features(above.cotangents, own)
        found = gradients_below(cut, seeds, [params[p] for p in members], retain)
        for p, grad in zip(members, found, strict=True):
            below[p] = grad
    with torch.no_grad():
        add_weighted_sum(group_gradients([below], params), ones[:1], written)
        weighted = set(heads.weighted_above)
        plain = set(range(len(params))) - weighted
        for places, own in ((weighted, weights), (plain, ones)):
            rows = [[grad if p in places else None for p, grad in enumerate(r)] for r in above.rows]
            add_weighted_sum(group_gradients(rows, params), own, written)


def balance_features(
    cotangents: Sequence[Row], method: Weighting, losses: Tensor | None, scale: Tensor | None
) -> Balanced:
    """The method's answer to T tasks' gradients at C tensors of the graph."""
    groups = group_gradients(_real(cotangents))
    return balance([groups], len(cotangents), method, losses, False, scale)


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
