"""Losses -> gradients: one backward a loss over one graph, or one for their weighted sum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

Losses = Mapping[str, Tensor] | Sequence[Tensor] | Tensor


def named_losses(losses: Losses) -> tuple[tuple[str, ...], list[Tensor]]:
    """The tasks' names and their scalar losses, checked.

    Args:
        losses: a mapping from names, a sequence, or a 1-D tensor of T losses.

    Raises:
        TypeError: not tensors.
        ValueError: none, not scalar, without a graph, or one tensor given twice.
    """
    if losses is None or isinstance(losses, str | float | int):
        raise TypeError(f"losses is a {type(losses).__name__}: give a mapping, a list or a tensor")
    if isinstance(losses, Tensor):
        if losses.dim() != 1:
            raise ValueError(
                f"a tensor of losses must be 1-D with one entry a task, got shape "
                f"{tuple(losses.shape)}"
            )
        losses = losses.unbind()
    if isinstance(losses, Mapping):
        tasks, values = tuple(map(str, losses)), list(losses.values())
    else:
        values = list(losses)
        tasks = tuple(map(str, range(len(values))))
    if not tasks:
        raise ValueError("no losses: give at least one")
    seen: dict[int, str] = {}
    for task, loss in zip(tasks, values, strict=True):
        if not isinstance(loss, Tensor):
            raise TypeError(f"loss {task!r} is a {type(loss).__name__}, not a tensor")
        if loss.numel() != 1:
            raise ValueError(
                f"loss {task!r} has shape {tuple(loss.shape)}: reduce it to a scalar, "
                "for example with .mean()"
            )
        if not loss.requires_grad:
            raise ValueError(
                f"loss {task!r} has no graph: it was computed under no_grad, detached, or from "
                "nothing that requires grad"
            )
        if id(loss) in seen:
            raise ValueError(
                f"losses {seen[id(loss)]!r} and {task!r} are the same tensor: give each task its "
                "own loss, or drop one"
            )
        seen[id(loss)] = task
    return tasks, values


def task_gradients(
    losses: Sequence[Tensor], params: Sequence[Tensor], retain_graph: bool = False
) -> list[list[Tensor | None]]:
    """T backwards over one graph; the last frees it unless told otherwise.

    Args:
        losses: T scalar losses.
        params: P parameters.
        retain_graph: keep the graph after the last backward too.

    Returns:
        T lists of P gradients, None where the loss does not reach the parameter. They are
        autograd's own tensors: they may be expanded or share memory.
    """
    rows: list[list[Tensor | None]] = []
    for t, loss in enumerate(losses):
        retain = retain_graph or t < len(losses) - 1
        root, cotangent = _root(loss)
        rows.append(
            list(
                torch.autograd.grad(
                    root, params, grad_outputs=cotangent, retain_graph=retain, allow_unused=True
                )
            )
        )
    return rows


def weighted_gradient(
    losses: Sequence[Tensor],
    weights: Tensor,
    params: Sequence[Tensor],
    retain_graph: bool = False,
) -> list[Tensor | None]:
    """The gradient of sum_t w_t L_t, in one backward.

    Args:
        losses: T scalar losses.
        weights: (T).
        params: P parameters.
        retain_graph: keep the graph after the backward.

    Returns:
        P gradients as `task_gradients` returns them.
    """
    cotangents = [
        weight.to(loss.device, loss.dtype).reshape(loss.shape)
        for weight, loss in zip(weights.unbind(), losses, strict=True)
    ]
    return list(
        torch.autograd.grad(
            list(losses),
            params,
            grad_outputs=cotangents,
            retain_graph=retain_graph,
            allow_unused=True,
        )
    )


# What may stand between torch.stack(losses) and a loss without mixing entries: x + a, x * a, ...
_ENTRYWISE = ("Mul", "Div", "Add", "Sub", "Neg", "ToCopy", "Alias", "View", "Clone")


def _root(loss: Tensor) -> tuple[Tensor | GradientEdge, Tensor]:
    """Where the backward of a loss starts, and with which cotangent.

    An entry of `torch.stack(losses)`, scaled or not, is traced back to the loss it was: through the
    stack it would reach every parameter that any of the losses reaches, with zeros.
    """
    one = torch.ones_like(loss)
    entry, number = _only_input(loss.grad_fn, loss.output_nr)
    if entry is None or torch.compiler.is_compiling():
        return loss, one
    stack, _ = _only_input(*entry.next_functions[0])
    if entry.name() == "UnbindBackward0":
        index = number
    elif entry.name() == "SelectBackward0":
        index = entry._saved_index  # type: ignore[attr-defined]
        index = index - 2**64 if index >= 2**63 else index
    else:
        return loss, one
    if stack is None or stack.name() != "StackBackward0":
        return loss, one
    node, output = stack.next_functions[index]
    if node is None:
        raise ValueError(
            f"loss {index} of the stack has no graph: it was computed under no_grad, detached, or "
            "from nothing that requires grad"
        )
    (row,) = torch.autograd.grad(loss, GradientEdge(stack, 0), one, retain_graph=True)
    return GradientEdge(node, output), row[index]


def _only_input(node: Node | None, number: int) -> tuple[Node | None, int]:
    """The first node at or behind this one that is not entrywise, and which output of it."""
    while node is not None and node.name().removesuffix("Backward0") in _ENTRYWISE:
        inputs = [(fn, nr) for fn, nr in node.next_functions if fn is not None]
        if len(inputs) != 1:
            return None, 0
        node, number = inputs[0]
    return node, number


def through_compiled_code(losses: Sequence[Tensor]) -> bool:
    """Whether a loss's graph holds the backward of a torch.compile'd function.

    Such a backward is one node: it hands a gradient, of zeros, to every parameter it knows.
    """
    todo = [loss.grad_fn for loss in losses]
    seen: set[Node] = set()
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        if node.name() == "CompiledFunctionBackward":
            return True
        seen.add(node)
        todo.extend(fn for fn, _ in node.next_functions)
    return False
