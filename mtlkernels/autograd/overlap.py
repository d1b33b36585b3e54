"""Finds which losses' graphs overlap, and so must be retained after a backward pass.

A backward pass without `retain_graph` frees the tensors that its nodes have saved. Losses of
separate batches have separate graphs, each of which the loop over the tasks can free.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

_LEAF = "torch::autograd::AccumulateGrad"


def needed_later(starts: Sequence[Tensor | GradientEdge]) -> list[bool]:
    """Whether a later backward pass may run through nodes of each loss's graph.

    The graphs are walked side by side, level by level, until all of them have met: with a common
    trunk this visits little more than the heads. Leaves save nothing, so they do not count.

    Args:
        starts: where the losses' backward passes start, in order; see `joins.root`.
    """
    last = len(starts) - 1
    if torch.compiler.is_compiling():  # no graph to look at
        return [t < last for t in range(len(starts))]
    group = list(range(len(starts)))  # losses that have met have one number
    owner: dict[Node, int] = {}
    todo: list[deque[Node]] = [deque() for _ in starts]

    def visit(node: Node, t: int) -> None:
        other = owner.setdefault(node, t)
        if other == t:
            todo[t].append(node)
        elif group[other] != group[t] and node.name() != _LEAF:
            low, high = sorted((group[other], group[t]))
            group[:] = [low if number == high else number for number in group]

    for t, start in enumerate(starts):
        visit((get_gradient_edge(start) if isinstance(start, Tensor) else start).node, t)
    while any(todo) and any(group):
        for t, queue in enumerate(todo):
            for source, _ in queue.popleft().next_functions if queue else ():
                if source is not None and owner.get(source) != t:
                    visit(source, t)
    return [group[t] in group[t + 1 :] for t in range(len(starts))]
