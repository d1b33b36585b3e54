"""The graph of several losses cut in two: what belongs to the tasks above, one backward below.

With c_te the gradient of task t at edge e of the cut, any weighted sum of the tasks' gradients
below is one backward of sum_t w_t c_te, and a task's own gradient there one of c_te. Cut at the
heads, each node of the graph runs once: together as often as in the backward of a summed loss.

What a loss reaches is what its graph says: a function whose backward returns None is passed.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

_SEVERAL = -1  # the owner of a node that several tasks reach

Place = tuple[Node, int]
Row = Sequence[Tensor | None]


@dataclass(frozen=True)
class Cut:
    """Where T losses' graph is cut.

    Attributes:
        edges: C places where gradients pass from above to below.
        crossed: T lists of the edges, by position, that a task's gradient passes.
        above: T lists of the parameters, by position, that a task's gradient reaches above.
        below: the parameters, by position, that are reached below; they may be above as well.
        entangled: whether tasks share a part of the graph above.
        reached: P numbers, how many tasks reach the parameter, counted up to 2.
        nested: whether an edge, or a parameter above, is reached below another edge too, as where
            heads read several stages of a trunk.
        gates: the nodes above that hand gradients to edges: which of their inputs to which edge.
        owners: of a cut at the heads, the nodes that tasks reach: the one task that does, or -1.
    """

    edges: list[GradientEdge]
    crossed: list[list[int]]
    above: list[list[int]]
    below: list[int]
    entangled: bool
    reached: list[int]
    nested: bool
    gates: dict[Node, list[tuple[int, int]]]
    owners: dict[Node, int]


def cut_at_heads(starts: Sequence[GradientEdge], params: Sequence[Tensor]) -> Cut:
    """The cut below all that one task alone reaches.

    Args:
        starts: T places where the losses' backwards start.
        params: P leaves.
    """
    owner: dict[Node, int] = {}
    for t, start in enumerate(starts):
        _claim(owner, start.node, t)
    crossed: list[dict[Place, None]] = [{} for _ in starts]
    for t, start in enumerate(starts):
        if owner[start.node] == _SEVERAL:
            crossed[t][start.node, start.output_nr] = None
    for node, t in owner.items():
        if t != _SEVERAL:
            for source, output in _sources(node):
                if owner[source] == _SEVERAL:
                    crossed[t][source, output] = None
    position = {id(param): p for p, param in enumerate(params)}
    nodes: list[list[Node]] = [[] for _ in starts]
    shared: list[Node] = []
    for node, t in owner.items():
        (shared if t == _SEVERAL else nodes[t]).append(node)
    above, below = [_leaves(own, position) for own in nodes], _leaves(shared, position)
    reached = [0] * len(params)
    for p in (p for own in above for p in own):
        reached[p] = 1
    for p in below:
        reached[p] = 2
    gates = [node for own in nodes for node in own]
    return _cut(crossed, above, below, reached, gates, owner, entangled=False)


def cut_at_features(
    starts: Sequence[GradientEdge], features: Sequence[Tensor], params: Sequence[Tensor]
) -> Cut:
    """The cut through given tensors: above is what losses reach without passing them.

    Args:
        starts: T places where the losses' backwards start.
        features: what the trunk returned and the heads read.
        params: P leaves.

    Raises:
        TypeError, ValueError: a feature is no tensor or has no graph, or a loss that is computed
            from none of them reaches more than a head of its own.
    """
    if not isinstance(features, Sequence):
        kind = type(features).__name__
        raise TypeError(f"features is a {kind}: give what the trunk returned, a tensor or several")
    given: dict[Place, None] = {}
    for i, feature in enumerate(features):
        if not isinstance(feature, Tensor):
            raise TypeError(f"feature {i} is a {type(feature).__name__}, not a tensor")
        if not feature.requires_grad:
            raise ValueError(
                f"feature {i} has no graph: give tensors that the trunk returned and that the "
                "losses were computed from"
            )
        edge = get_gradient_edge(feature)
        given[edge.node, edge.output_nr] = None
    position = {id(param): p for p, param in enumerate(params)}
    crossed: list[dict[Place, None]] = []
    nodes: list[dict[Node, None]] = []
    for start in starts:
        passed: dict[Place, None] = {}
        nodes.append(reach([(start.node, start.output_nr)], given, passed))
        crossed.append(passed)
    union = {node: None for own in nodes for node in own}
    entangled = len(union) < sum(map(len, nodes))
    above = [_leaves(own, position) for own in nodes]
    under: dict[frozenset[Place], list[int]] = {}  # tasks that cross alike reach alike below
    for passed in crossed:
        if frozenset(passed) not in under:
            under[frozenset(passed)] = _leaves(reach(list(passed)), position)
    trunk = {p for leaves in under.values() for p in leaves}
    for t, (own, passed) in enumerate(zip(above, crossed, strict=True)):
        others = {p for u, leaves in enumerate(above) if u != t for p in leaves}
        if not passed and not (trunk | others).isdisjoint(own):
            raise ValueError(
                f"loss {t} is not computed from the features, so they do not tell how it moves the "
                "trunk: give all that the heads read, as the heads read it"
            )
    reached = [0] * len(params)
    for own, passed in zip(above, crossed, strict=True):
        for p in {*own, *under[frozenset(passed)]}:
            reached[p] = min(2, reached[p] + 1)
    below = sorted({p for leaves in under.values() for p in leaves})
    return _cut(crossed, above, below, reached, union, {}, entangled)


def reached_by(starts: Sequence[GradientEdge], params: Sequence[Tensor]) -> list[list[int]]:
    """T lists of the parameters, by position, that a loss reaches, from the graph alone."""
    cut = cut_at_heads(starts, params)
    position = {id(param): p for p, param in enumerate(params)}
    below: dict[frozenset[int], list[int]] = {}
    for crossed in map(frozenset, cut.crossed):
        if crossed not in below:
            places = [(cut.edges[e].node, cut.edges[e].output_nr) for e in crossed]
            below[crossed] = _leaves(reach(places), position)
    return [
        sorted({*above, *below[frozenset(crossed)]})
        for above, crossed in zip(cut.above, cut.crossed, strict=True)
    ]


@contextmanager
def stopped_at(cut: Cut) -> Iterator[dict[int, Tensor]]:
    """What backwards in here hand to the edges, by edge; the caller empties it between them.

    It is taken from the nodes above, before tensor hooks that stand at an edge: those belong to the
    backward below. Where edges are nested, a gradient that reaches one goes no further, so that a
    lower one gets none through it: undefined ones go on instead, for which autograd's formulas
    compute nothing.
    """
    passed: dict[int, Tensor] = {}

    def collect(hits: list[tuple[int, int]], grads: tuple[Tensor | None, ...]) -> None:
        for i, e in hits:
            grad = grads[i]
            if grad is not None:
                passed[e] = passed[e] + grad if e in passed else grad

    handles = [
        node.register_hook(lambda grads, _, hits=hits: collect(hits, grads))
        for node, hits in cut.gates.items()
    ]
    outputs: dict[Node, set[int]] = {}
    for edge in cut.edges if cut.nested else ():
        outputs.setdefault(edge.node, set()).add(edge.output_nr)
    for node, ends in outputs.items():
        handles.append(
            node.register_prehook(
                lambda grads, ends=ends: tuple(
                    None if i in ends else grad for i, grad in enumerate(grads)
                )
            )
        )
    try:
        yield passed
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def crossing(
    cut: Cut, starts: Sequence[GradientEdge], seeds: Sequence[Tensor]
) -> Iterator[list[dict[int, Tensor]]]:
    """What each of T whole backward passes in here hands to the edges from above, by edge.

    Args:
        cut: at the heads.
        starts, seeds: of the T passes; a start may be an edge itself.
    """
    number = {(edge.node, edge.output_nr): e for e, edge in enumerate(cut.edges)}
    passed: list[dict[int, Tensor]] = [{} for _ in starts]
    for start, seed, own in zip(starts, seeds, passed, strict=True):
        if (start.node, start.output_nr) in number:
            own[number[start.node, start.output_nr]] = seed.clone()

    def collect(own: dict[int, Tensor], hits: list[tuple[int, int]], grads: Row) -> None:
        for i, e in hits:
            grad = grads[i]
            if grad is not None:  # a copy, as the node below may work in place on what it is handed
                own[e] = own[e] + grad if e in own else grad.clone()

    handles = [
        node.register_hook(
            lambda grads, _, own=passed[cut.owners[node]], hits=hits: collect(own, hits, grads)
        )
        for node, hits in cut.gates.items()
    ]
    try:
        yield passed
    finally:
        for handle in handles:
            handle.remove()


def dtypes_below(edges: Sequence[GradientEdge]) -> set[torch.dtype]:
    """The dtypes of the gradients below, among them those that autocast computes in.

    A node of a person's own, or of a compiled or scripted function, may compute in 16 bits inside.
    """
    nodes = reach([(edge.node, edge.output_nr) for edge in edges])
    dtypes = {meta.dtype for node in nodes for meta in node._input_metadata}
    return dtypes | {torch.bfloat16, torch.float16} if any(map(_opaque, nodes)) else dtypes


def _opaque(node: Node) -> bool:
    """Whether a node stands for many operations that autograd does not show."""
    if isinstance(node, BackwardCFunction):
        module = getattr(type(node), "_forward_cls", type(node)).__module__
        return not module.startswith("torch.distributed.")  # these move gradients as they are
    return "CppNode" in node.name() or "DifferentiableGraph" in node.name()


def _cut(
    crossed: Sequence[dict[Place, None]],
    above: list[list[int]],
    below: list[int],
    reached: list[int],
    nodes: Iterable[Node],
    owners: dict[Node, int],
    entangled: bool,
) -> Cut:
    places = {place: None for passed in crossed for place in passed}
    number = {place: e for e, place in enumerate(places)}
    beneath = reach([place for node, _ in places for place in _sources(node)])
    gates: dict[Node, list[tuple[int, int]]] = {}
    for node in nodes:
        hits = [(i, number[at]) for i, at in enumerate(node.next_functions) if at in number]
        if hits:
            gates[node] = hits
    return Cut(
        [GradientEdge(node, output) for node, output in places],
        [[number[place] for place in passed] for passed in crossed],
        above,
        below,
        entangled,
        reached,
        nested=any(node in beneath for node, _ in places)
        or any(p in own for own in map(set, above) for p in below),
        gates=gates,
        owners=owners,
    )


def _claim(owner: dict[Node, int], start: Node, task: int) -> None:
    """Marks what a task reaches. Over all tasks a node is seen at most twice."""
    todo = [(start, task)]
    while todo:
        node, who = todo.pop()
        had = owner.get(node)
        if had in (who, _SEVERAL):
            continue
        owner[node] = who = who if had is None else _SEVERAL
        todo += [(source, who) for source, _ in _sources(node)]


def reach(
    starts: Sequence[Place],
    stop: Container[Place] = (),
    passed: dict[Place, None] | None = None,
) -> dict[Node, None]:
    """The nodes that a backward from some places runs through up to others, noted in `passed`."""
    seen: dict[Node, None] = {}
    todo = list(starts)
    while todo:
        place = todo.pop()
        if place in stop:
            assert passed is not None
            passed[place] = None
        elif place[0] not in seen:
            seen[place[0]] = None
            todo += _sources(place[0])
    return seen


def _sources(node: Node) -> list[Place]:
    """Where a node's gradients go."""
    return [(source, output) for source, output in node.next_functions if source is not None]


def _leaves(nodes: Sequence[Node] | dict[Node, None], position: dict[int, int]) -> list[int]:
    """Positions of the parameters whose gradients end at some of the nodes, in order."""
    found = [position.get(id(getattr(node, "variable", None))) for node in nodes]
    return sorted(p for p in found if p is not None)
