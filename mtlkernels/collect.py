"""Losses -> gradients: one backward a loss over one graph, or one for their weighted sum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mtlkernels.graph import root

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
        start, cotangent = root(loss)
        rows.append(
            list(
                torch.autograd.grad(
                    start, params, grad_outputs=cotangent, retain_graph=retain, allow_unused=True
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
