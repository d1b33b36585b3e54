"""What autograd's graph says of losses: where each one's backward starts, and what it cannot tell.

A gradient of zeros looks like a parameter that is reached. Two kinds of graph hand out such zeros:
losses that are entries of one tensor, and code that torch.compile made one node of.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from enum import Enum
from functools import cache, reduce
from operator import and_, or_

from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import Node, get_gradient_edge

from mtlkernels.autograd.joins import kind_of, root

# What takes some entries of a tensor; a view of a buffer written to in place is an AsStrided.
_SELECTING = {
    *("Unbind", "Select", "Slice", "NarrowCopy", "AsStrided", "Diagonal"),
    *("Split", "SplitWithSizes", "UnsafeSplit", "UnsafeSplitWithSizes"),
    *("Index", "IndexSelect", "Gather", "MaskedSelect", "Take"),
}
# What makes one tensor of several; CopySlices writes to a part of one in place.
_JOINING = {
    *("Stack", "Cat", "BlockDiag", "CopySlices", "Where", "NestedTensorFromTensorList"),
    *("IndexPut", "IndexPutImpl", "IndexCopy", "IndexAdd", "Put", "MaskedScatter", "MaskedFill"),
    *("Scatter", "ScatterAdd", "ScatterReduce", "SelectScatter", "SliceScatter"),
    *("DiagonalScatter", "AsStridedScatter"),
}
# What computes each of its entries from many: Mm, Addmm, Bmm, Mv, MkldnnConvolution, CudnnRnn, ...
_MIXING = re.compile(
    r"[Mm]m$|[Mm]v$|Linear$|^Trilinear$|Conv(?!ert)|Embedding|Attention|Rnn|Lstm|Cdist"
)


class _Reads(Enum):
    """What a loss takes of a tensor behind it."""

    WHOLE = 0
    PART = 1  # some entries of it, or of what they are entries of
    ALL = 2  # behind a layer, where a part is not told from the whole


_State = tuple[Node, _Reads]


def entries_of_one_join(losses: Sequence[Tensor]) -> bool:
    """Whether heads would pass for shared: losses that select from a tensor joined of several.

    A loss that selects may read one input of the join alone, and gives zeros to what lies behind
    the others. So it is only certain to reach what lies behind all of them. Losses are refused
    where two reach a parameter, but less than two are certain to. Behind the first layer on a way
    down a join is taken for a part of a trunk, such as a class token beside patches or a skip
    connection. Joins of losses that `root` sees through do not count.
    """
    edges = [edge for edge, _ in map(root, losses)]
    nodes = [(get_gradient_edge(e) if isinstance(e, Tensor) else e).node for e in edges]
    if not _selects_from_a_join(nodes):
        return False
    certain = [(node, _Reads.WHOLE) for node in nodes]
    reached = [(node, _Reads.ALL) for node in nodes]
    leaves = _leaves([*certain, *reached])
    return bool(
        _in_two(leaves[state] for state in reached) & ~_in_two(leaves[state] for state in certain)
    )


def _selects_from_a_join(nodes: Sequence[Node]) -> bool:
    """Whether there is one at all above the layers: no more than the graph's top is looked at."""
    todo = [(node, _Reads.WHOLE) for node in nodes]
    seen = set(todo)
    while todo:
        state = todo.pop()
        inputs = set(_inputs(state))
        if len(inputs) > 1 and _selects(state):
            return True
        new = {(node, reads) for node, reads in inputs if reads is not _Reads.ALL} - seen
        seen |= new
        todo += new
    return False


def _leaves(states: Sequence[_State]) -> dict[_State, int]:
    """Which leaves of the graph each state is certain to reach, as the bits of a number."""
    found: dict[_State, int] = {}
    place: dict[Node, int] = {}
    todo = list(states)
    while todo:
        state = todo[-1]
        inputs = _inputs(state)
        missing = [] if state in found else [entry for entry in inputs if entry not in found]
        todo += missing
        if missing:
            continue
        node, _ = todo.pop()
        if inputs:
            found[state] = reduce(and_ if _selects(state) else or_, map(found.__getitem__, inputs))
        else:
            is_leaf = kind_of(node) == "AccumulateGrad"
            found[state] = 1 << place.setdefault(node, len(place)) if is_leaf else 0
    return found


def _inputs(state: _State) -> list[_State]:
    """What a state leads to, one step down."""
    node, reads = state
    if reads is not _Reads.ALL:
        if _mixes(node):
            reads = _Reads.ALL
        elif kind_of(node) in _SELECTING:
            reads = _Reads.PART
    return [
        (source, _Reads.WHOLE if reads is _Reads.PART and _is_number(source, output) else reads)
        for source, output in node.next_functions
        if source is not None
    ]


def _selects(state: _State) -> bool:
    """Whether a part is read of what a node joins."""
    node, reads = state
    return reads is _Reads.PART and kind_of(node) in _JOINING


def _mixes(node: Node) -> bool:
    """Whether a node is a layer; one of several inputs that torch does not know may be."""
    if isinstance(node, BackwardCFunction):
        return sum(source is not None for source, _ in node.next_functions) > 1
    return _is_layer(kind_of(node))


@cache
def _is_layer(kind: str) -> bool:
    return _MIXING.search(kind) is not None


def _is_number(node: Node, output: int) -> bool:
    """Whether an output is one number, of which no part can be taken."""
    shape = node._input_metadata[output]
    return not shape.is_nested_tensor and math.prod(shape.shape) == 1


def _in_two(sets: Iterable[int]) -> int:
    """The bits that stand in at least two numbers."""
    once = twice = 0
    for members in sets:
        twice |= once & members
        once |= members
    return twice


def outputs_of_one_compiled_function(losses: Sequence[Tensor]) -> bool:
    """Whether losses go through different outputs of one torch.compile'd function.

    Its backward is one node: it hands a gradient, of zeros, to every parameter that it knows. Where
    all losses use the same outputs, a compiled trunk's for example, all reach what it reaches.
    """
    if not _any_function(losses, "CompiledFunctionBackward"):
        return False
    entered = [_compiled_outputs(loss) for loss in losses]
    nodes = {node for outputs in entered for node in outputs}
    return any(
        len({frozenset(outputs[node]) for outputs in entered if node in outputs}) > 1
        for node in nodes
    )


def _compiled_outputs(loss: Tensor) -> dict[Node, set[int]]:
    """Compiled functions in a loss's graph -> which of their outputs it depends on."""
    outputs: dict[Node, set[int]] = {}
    for node, number in _edges(loss):
        if node.name() == "CompiledFunctionBackward":
            outputs.setdefault(node, set()).add(number)
    return outputs


def _edges(loss: Tensor) -> Iterator[tuple[Node, int]]:
    """Every (node, output) that a loss depends on, once."""
    if loss.grad_fn is None:
        return
    todo = [(loss.grad_fn, loss.output_nr)]
    seen = set(todo)
    while todo:
        node, number = todo.pop()
        yield node, number
        for source, output in node.next_functions:
            if source is not None and (source, output) not in seen:
                seen.add((source, output))
                todo.append((source, output))


def leaves(losses: Iterable[Tensor]) -> list[Tensor]:
    """The leaves whose .grad an ordinary backward of the losses would write, each once."""
    return [
        node.variable  # type: ignore[attr-defined]
        for node in nodes(losses)
        if kind_of(node) == "AccumulateGrad"
    ]


def nodes(losses: Iterable[Tensor]) -> Iterator[Node]:
    """Every node that an ordinary backward of the losses would run, once."""
    todo = [loss.grad_fn for loss in losses if loss.grad_fn is not None]
    seen = set(todo)
    while todo:
        node = todo.pop()
        yield node
        for source, _ in node.next_functions:
            if source is not None and source not in seen:
                seen.add(source)
                todo.append(source)


def reentrant_checkpoint(losses: Sequence[Tensor]) -> bool:
    """Whether a loss goes through checkpoint(use_reentrant=True), which hides its parameters."""
    return _any_function(losses, "CheckpointFunctionBackward")


def _any_function(losses: Sequence[Tensor], name: str) -> bool:
    """Whether a Function written in Python, of that name, is anywhere in the losses' graphs.

    Every step asks this, so the graphs are walked together: what they share is visited once.
    """
    todo = [loss.grad_fn for loss in losses if loss.grad_fn is not None]
    seen = set(todo)
    while todo:
        node = todo.pop()
        if isinstance(node, BackwardCFunction) and node.name() == name:
            return True
        for source, _ in node.next_functions:
            if source is not None and source not in seen:
                seen.add(source)
                todo.append(source)
    return False
