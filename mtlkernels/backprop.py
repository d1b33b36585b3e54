"""Losses -> .grad: collect the per-task gradients, aggregate them over what the tasks share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mtlkernels.aggregation import Weighting, add_weighted_sum, solve, total_gram
from mtlkernels.collect import (
    Losses,
    named_losses,
    task_gradients,
    through_compiled_code,
)
from mtlkernels.layout import TaskGrads, check_lengths, group_gradients
from mtlkernels.report import Report


def backward(
    losses: Losses,
    params: Sequence[Tensor],
    method: Weighting,
    *,
    shared: Sequence[Tensor] | None = None,
    weight_heads: bool = False,
    retain_graph: bool = False,
) -> Report:
    """Adds a method's update direction to the parameters' .grad, as `loss.backward()` adds its own.

    Shared parameters, those that at least two losses reach, get the method's direction. The others,
    the heads, get the plain sum of the gradients that reach them, which for one loss is its own. A
    parameter that no loss reaches keeps its .grad, None included. Like any use of
    `torch.autograd.grad`, the backwards run a parameter's own tensor hooks once a task, run no
    post-accumulate-grad hooks, and do not reach into reentrant checkpoints. The .grad of a dtype
    and device are views of one vector.

    Args:
        losses: T scalar losses: a mapping from names, a sequence or a 1-D tensor.
        params: the parameters to write to, and no others; those that do not require grad are
            passed over.
        method: a Gram method, for example `PCGrad()`.
        shared: the shared parameters, where they are not to be found out.
        weight_heads: multiply each head's gradients by the tasks' weights too, as
            `(weights * losses).sum().backward()` would.
        retain_graph: keep the graph, for another backward through it.

    Returns:
        The report of this step: Gram matrix, weights, losses and status, on the device.

    Raises:
        TypeError, ValueError: losses, params or shared are not what they have to be, or no
            parameter is shared; nothing has been written then.
        NotImplementedError: torch.distributed runs more than one rank.
    """
    _refuse_several_ranks()
    tasks, values = named_losses(losses)
    params = check_params(params)
    rows = task_gradients(values, params, retain_graph)
    if shared is None:
        _refuse_compiled_reach(rows, values)
    stacked = torch.stack([loss.detach().reshape(()).to(values[0].device) for loss in values])
    return write_gradients(
        rows, params, method, stacked, tasks=tasks, shared=shared, weight_heads=weight_heads
    )


@torch.no_grad()
def write_gradients(
    task_grads: TaskGrads,
    params: Sequence[Tensor],
    method: Weighting,
    losses: Tensor | None = None,
    *,
    tasks: Sequence[str] | None = None,
    shared: Sequence[Tensor] | None = None,
    weight_heads: bool = False,
) -> Report:
    """The part of `backward` after the backwards: T lists of P gradients in, .grad out."""
    check_lengths(task_grads, params)
    shared = None if shared is None else list(shared)
    balanced, heads = split(task_grads, params, shared)
    groups = group_gradients(_columns(task_grads, balanced), [params[p] for p in balanced])
    head_groups = group_gradients(_columns(task_grads, heads), [params[p] for p in heads])

    gram = total_gram(groups, len(task_grads))
    weights, status = solve(method, gram, losses)
    add_weighted_sum(groups, weights, [params[p] for p in balanced])
    head_weights = weights if weight_heads else torch.ones_like(weights)
    add_weighted_sum(head_groups, head_weights, [params[p] for p in heads])

    names = tuple(tasks) if tasks is not None else tuple(map(str, range(len(task_grads))))
    return Report(names, gram, weights, losses, status)


def split(
    task_grads: TaskGrads, params: Sequence[Tensor], shared: Sequence[Tensor] | None
) -> tuple[list[int], list[int]]:
    """Positions of the parameters to balance and of the other ones that some loss reaches."""
    tasks = len(task_grads)
    reached = [sum(row[p] is not None for row in task_grads) for p in range(len(params))]
    if shared is None:
        chosen = {p for p, count in enumerate(reached) if count >= min(2, tasks)}
        if not chosen & {p for p, count in enumerate(reached) if count}:
            raise ValueError(
                "no parameter is shared: no two losses reach the same one, so there is nothing to "
                "balance. Use sum(losses).backward(), or name the parameters with shared=. "
                "(Parameters inside a reentrant checkpoint are not reached: use_reentrant=False)"
            )
    else:
        place = {id(param): p for p, param in enumerate(params)}
        if any(id(param) not in place for param in shared):
            raise ValueError(
                "shared= names a parameter that is not among the parameters that require grad"
            )
        chosen = {place[id(param)] for param in shared}
        if not any(reached[p] for p in chosen):
            raise ValueError("no loss reaches any of the parameters that shared= names")
    balanced = [p for p, count in enumerate(reached) if count and p in chosen]
    return balanced, [p for p, count in enumerate(reached) if count and p not in chosen]


def check_params(params: Sequence[Tensor]) -> list[Tensor]:
    """The parameters that require grad; raises where one is not a leaf or stands twice."""
    kept: list[Tensor] = []
    seen: set[int] = set()
    for i, param in enumerate(params):
        if not isinstance(param, Tensor):
            raise TypeError(f"parameter {i} is a {type(param).__name__}, not a tensor")
        if hasattr(param, "device_mesh"):
            raise NotImplementedError(f"parameter {i} is a DTensor: this version takes plain ones")
        if id(param) in seen:
            raise ValueError(f"parameter {i} stands twice in the list: give each one once")
        seen.add(id(param))
        if not param.requires_grad:
            continue
        if not param.is_leaf:
            raise ValueError(
                f"parameter {i} is the result of an operation, so it has no .grad: "
                "give the model's own parameters"
            )
        kept.append(param)
    if not kept:
        raise ValueError("no parameter requires grad")
    return kept


def _refuse_compiled_reach(rows: TaskGrads, losses: Sequence[Tensor]) -> None:
    """Compiled code hands zeros to the heads of other tasks: they would pass for shared."""
    reach = [[grad is None for grad in row] for row in rows]
    if len(rows) > 1 and all(row == reach[0] for row in reach) and through_compiled_code(losses):
        raise ValueError(
            "the losses come out of a torch.compile'd function, which reports a gradient, of "
            "zeros, for every parameter it knows: heads cannot be told from what is shared. Name "
            "the shared parameters with shared="
        )


def _refuse_several_ranks() -> None:
    """Per-task gradients pass DistributedDataParallel's hooks by: ranks would drift apart."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return
    if distributed.get_world_size() > 1:
        raise NotImplementedError(
            f"{distributed.get_world_size()} ranks: this version balances the gradients of one "
            "process and would let ranks drift apart. Average each task's gradients over the "
            "ranks yourself and pass them to mtlkernels.aggregate"
        )


def _columns(task_grads: TaskGrads, params: Sequence[int]) -> list[list[Tensor | None]]:
    return [[row[p] for p in params] for row in task_grads]
