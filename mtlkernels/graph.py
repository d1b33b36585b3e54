"""What autograd's graph says of losses: where each one's backward starts, and what it cannot tell.

A gradient of zeros looks like a parameter that is reached. Two kinds of graph hand out such zeros:
losses that are entries of one tensor, and code that torch.compile made one node of.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

# What may stand between torch.stack(losses) and a loss without mixing entries: x + a, x * a, ...
_ENTRYWISE = ("Mul", "Div", "Add", "Sub", "Neg", "ToCopy", "Alias", "View", "Clone")
# What takes some entries of a tensor.
_SELECTING = ("Unbind", "Select", "Slice", "Split", "SplitWithSizes", "Index", "IndexSelect")
# What makes one tensor of several.
_JOINING = ("Stack", "Cat")


def root(loss: Tensor) -> tuple[Tensor | GradientEdge, Tensor]:
    """Where the backward of a loss starts, and with which cotangent.

    An entry of `torch.stack(losses)`, scaled or not, is traced back to the loss it was: through the
    stack it would reach every parameter that any of the losses reaches, with zeros.
    """
    one = torch.ones_like(loss)
    if torch.compiler.is_compiling():  # no graph to look at
        return loss, one
    found = _stack_entry(loss)
    if found is None:
        return loss, one
    stack, index = found
    (row,) = torch.autograd.grad(loss, GradientEdge(stack, 0), one, retain_graph=True)
    if row.dim() != 1 or len(row) != len(stack.next_functions):
        return loss, one  # a stack of something else than scalars
    node, output = stack.next_functions[index]
    if node is None:
        raise ValueError(
            f"loss {index} of the stack has no graph: it was computed under no_grad, detached, or "
            "from nothing that requires grad"
        )
    return GradientEdge(node, output), row[index]


def _stack_entry(loss: Tensor) -> tuple[Node, int] | None:
    """The stack that a loss is an entry of, and which."""
    entry, number = _only_input(loss.grad_fn, loss.output_nr)
    if entry is None or not entry.next_functions:
        return None
    stack, _ = _only_input(*entry.next_functions[0])
    if stack is None or _kind(stack) != "Stack":
        return None
    count = len(stack.next_functions)
    if _kind(entry) == "Unbind":
        index = number
    elif _kind(entry) == "Select":
        index = entry._saved_index  # type: ignore[attr-defined]
        index = index - 2**64 if index >= 2**63 else index
    else:
        return None
    return (stack, index) if -count <= index < count else None


def _only_input(node: Node | None, number: int) -> tuple[Node | None, int]:
    """The first node at or behind this one that is not entrywise, and which output of it."""
    while node is not None and _kind(node) in _ENTRYWISE:
        inputs = [(fn, nr) for fn, nr in node.next_functions if fn is not None]
        if len(inputs) != 1:
            return None, 0
        node, number = inputs[0]
    return node, number


def _kind(node: Node) -> str:
    return node.name().removesuffix("Backward0")


def entries_of_one_join(losses: Sequence[Tensor]) -> bool:
    """Whether two losses are entries of one tensor that torch.cat or torch.stack put together.

    Not so where `root` sees through it.
    """
    joins = []
    for loss in losses:
        start, _ = root(loss)
        if start is loss:
            joins.append(_join_behind_selection(loss))
    found = [join for join in joins if join is not None]
    return len(set(found)) < len(found)


def _join_behind_selection(loss: Tensor) -> Node | None:
    """The first node with several inputs behind a loss, if it joins and entries were selected."""
    node, selected = loss.grad_fn, False
    while node is not None:
        inputs = [fn for fn, _ in node.next_functions if fn is not None]
        if len(inputs) != 1 or _kind(node) in _JOINING:
            return node if selected and _kind(node) in _JOINING else None
        selected = selected or _kind(node) in _SELECTING
        node = inputs[0]
    return None


def outputs_of_one_compiled_function(losses: Sequence[Tensor]) -> bool:
    """Whether losses go through different outputs of one torch.compile'd function.

    Its backward is one node: it hands a gradient, of zeros, to every parameter that it knows. Where
    all losses use the same outputs, a compiled trunk's for example, all reach what it reaches.
    """
    if "torch._dynamo" not in sys.modules:  # nothing has been compiled in this process
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


def reentrant_checkpoint(losses: Sequence[Tensor]) -> bool:
    """Whether a loss goes through checkpoint(use_reentrant=True), which hides its parameters."""
    return any(
        node.name() == "CheckpointFunctionBackward" for loss in losses for node, _ in _edges(loss)
    )
