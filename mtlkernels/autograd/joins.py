"""Traces losses that were joined into one tensor back to the separate losses.

Through the joined tensor each entry would reach the parameters of all losses, with zero gradients.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node
from torch.utils._python_dispatch import TorchDispatchMode

# Operations after a join that do not mix entries: x + a, x * a, ...
_ENTRYWISE = {
    *("Mul", "Div", "Add", "Sub", "Neg", "ToCopy", "Alias", "Clone"),
    *("View", "UnsafeView", "ReshapeAlias", "Squeeze", "Unsqueeze"),
}
_JOINS = {"Stack", "Cat", "CopySlices"}
_VARIANT = re.compile(r"Backward(AutogradNestedTensor)?\d*(_copy)?$")
_WRITTEN = "mtlkernels: written"  # the key in a node's metadata for the entries that it writes

Place = tuple[Node, int]


def root(loss: Tensor) -> tuple[Tensor | GradientEdge, Tensor]:
    """Where the backward pass of a loss starts, and with which cotangent.

    An entry of `torch.stack(losses)`, of a `torch.cat` or `torch.hstack` of losses, or of a vector
    that losses were written to, `z[i] = loss`, is traced back to the original loss. That may again
    be such an entry, and each may be scaled and shifted.

    Raises:
        ValueError: the loss is an entry without a graph.
    """
    start: Tensor | GradientEdge = loss
    seed = torch.ones_like(loss)
    if torch.compiler.is_compiling() or loss.grad_fn is None:  # no graph to look at
        return start, seed
    place, index = (loss.grad_fn, loss.output_nr), 0
    while (step := _behind(place, index)) is not None:
        node, output, position, offset = step
        if node is None:
            stacked = place[0].name().startswith("Stack")
            raise ValueError(
                f"loss {index} of {'the stack' if stacked else 'those in one tensor'} has no "
                "graph: it was computed under no_grad, detached, or from nothing that requires "
                "grad. For a task that has no data in this step, give None in a list of losses"
            )
        join, place, index = place, (node, output), position
        if offset is not None and _numel(place) == 1:
            edge = GradientEdge(*join)
            (row,) = torch.autograd.grad(start, edge, seed, retain_graph=True)
            meta = node._input_metadata[output]
            start = GradientEdge(node, output)
            seed = row[offset].reshape(meta.shape).to(meta.device, meta.dtype)
    return start, seed


def kind_of(node: Node) -> str:
    """The operation of a node: Select for SelectBackward0 and its variants."""
    return _kind(node.name())


@cache
def _kind(name: str) -> str:
    return _VARIANT.sub("", name.rpartition("::")[2])


def _behind(place: Place, index: int) -> tuple[Node | None, int, int, int | None] | None:
    """Where an entry of an output comes from.

    Returns:
        The node and the output that it was an entry of, its position there, and, for an input of a
        join, the position in the join at which that input begins. None if it is not known.
    """
    node, output = place
    kind, inputs = kind_of(node), node.next_functions
    if kind in _JOINS:
        if len(node._input_metadata[output].shape) != 1:
            return None
        if kind == "Stack":
            return (*inputs[index], 0, index)
        return _part(node, index) if kind == "Cat" else _write(node, index)
    known = [(source, number) for source, number in inputs if source is not None]
    if len(known) != 1:
        return None
    source, number = known[0]
    size = _numel((source, number))
    if kind in _ENTRYWISE:
        return (source, number, index, None) if size == _numel(place) else None
    if len(source._input_metadata[number].shape) != 1:
        return None
    saved: Any = node
    if kind == "Unbind":
        return source, number, output, None
    if kind == "Split":
        return source, number, output * saved._saved_split_size + index, None
    if kind == "Select":
        return (source, number, signed(saved._saved_index) % size, None) if size else None
    if kind == "Slice":
        begin = signed(saved._saved_start)
        begin = max(begin + size, 0) if begin < 0 else begin
        return source, number, begin + index * saved._saved_step, None
    return None


def signed(saved: int) -> int:
    """A number saved by autograd, which returns negative ones as unsigned."""
    return saved - 2**64 if saved >= 2**63 else saved


def _part(node: Node, index: int) -> tuple[Node | None, int, int, int | None] | None:
    """`_behind` for a concatenation of vectors; those without a graph have unknown length."""
    begin = 0
    for source, number in node.next_functions:
        if source is None:
            break
        size = _numel((source, number))
        if index < begin + size:
            return source, number, index - begin, begin
        begin += size
    end = math.prod(node._input_metadata[0].shape)
    for source, number in reversed(node.next_functions):
        if source is None:
            break
        end -= _numel((source, number))
        if index >= end:
            return source, number, index - end, end
    unknown = [source for source, _ in node.next_functions if source is None]
    return (None, 0, 0, None) if len(unknown) == 1 else None


def _write(node: Node, index: int) -> tuple[Node | None, int, int, int | None] | None:
    """`_behind` for an in-place write to a part of a vector."""
    region = _written(node)
    if region is None:
        return None
    begin, size = region
    if not begin <= index < begin + size:
        return (*node.next_functions[0], index, None)
    source, number = node.next_functions[1]
    if source is not None and _numel((source, number)) != size:
        return None
    return source, number, index - begin, begin


def _written(node: Node) -> tuple[int, int] | None:
    """The entries that z[...] = x wrote, as begin and size; None if it is not such a write.

    Only the operations that the backward pass of the write runs show it.
    """
    known = cast("dict[str, tuple[int, int] | None]", node.metadata)
    if _WRITTEN not in known:
        known[_WRITTEN] = _watched_write(node)
    return known[_WRITTEN]


def _watched_write(node: Node) -> tuple[int, int] | None:
    meta = node._input_metadata[0]
    seed = torch.zeros(meta.shape, dtype=meta.dtype, device=meta.device)
    edges = [GradientEdge(fn, nr) for fn, nr in node.next_functions if fn is not None]
    recorded = _Recorded()
    with recorded:
        torch.autograd.grad(
            GradientEdge(node, 0), edges, seed, retain_graph=True, allow_unused=True
        )
    names = [name for name, _ in recorded.operations]
    if "as_strided" not in names:
        return None
    at = names.index("as_strided")
    _, size, stride, offset = recorded.operations[at][1][:4]
    over = node.next_functions[0][0] is not None  # other entries have a graph
    # Its last operation is a copy; operations of the written value's backward may follow.
    end = names.index("copy_", at) if over and "copy_" in names[at:] else len(names)
    own = set(names[at + 1 : end])
    clears = own & {"zeros", "zeros_like", "new_zeros"}
    copies = own - clears <= {"clone", "_to_copy"}
    overwrites = bool(clears) or not over
    if not (copies and overwrites and len(size) <= 1 and tuple(stride) in ((), (1,))):
        return None
    return offset, math.prod(size)


class _Recorded(TorchDispatchMode):
    """Records the operations that run."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[str, Sequence[Any]]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.operations.append((func.overloadpacket.__name__, args))
        return func(*args, **(kwargs or {}))


def _numel(place: Place) -> int:
    """How many numbers an output has; 0 for a nested tensor."""
    meta = place[0]._input_metadata[place[1]]
    return 0 if meta.is_nested_tensor else math.prod(meta.shape)
