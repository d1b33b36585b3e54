"""Losses -> .grad: per-task gradients, aggregated over what the tasks share, or one backward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from mtlkernels.aggregation import (
    LossWeighting,
    RowWeighting,
    Weighting,
    add_direction,
    add_weighted_sum,
    balance,
    check_method,
    takes_rows,
    weighs_losses,
)
from mtlkernels.collect import (
    Losses,
    named_losses,
    task_gradients,
    weighted_gradient,
)
from mtlkernels.graph import entries_of_one_join, outputs_of_one_compiled_function
from mtlkernels.layout import TaskGrads, check_lengths, group_gradients
from mtlkernels.report import Report, Status


def backward(
    losses: Losses,
    params: Sequence[Tensor],
    method: Weighting | RowWeighting | LossWeighting,
    *,
    shared: Sequence[Tensor] | None = None,
    weight_heads: bool = False,
    parts: Sequence[Sequence[Tensor]] | None = None,
    retain_graph: bool = False,
) -> Report:
    """Adds a method's update direction to the parameters' .grad, as `loss.backward()` adds its own.

    Shared parameters, those that at least two losses reach, get the method's direction. The others,
    the heads, get the plain sum of the gradients that reach them, which for one loss is its own. A
    parameter that no loss reaches keeps its .grad, None included. Like any use of
    `torch.autograd.grad`, the backwards run a parameter's own tensor hooks once a task, run no
    post-accumulate-grad hooks, and do not reach into reentrant checkpoints. The .grad of a dtype
    and device are views of one vector.

    A loss method makes one loss of the T, and one backward of it is all: every parameter, the heads
    too, gets sum_t w_t g_t with w_t = d scalar / d L_t, and the method's own parameters get their
    gradients. It weighs the losses it is given, so these must not carry a GradScaler's factor:
    with one, use `scaler.scale(method(torch.stack(losses))).backward()`.

    Args:
        losses: T scalar losses: a mapping from names, a sequence or a 1-D tensor.
        params: the parameters to write to, and no others; those that do not require grad are
            passed over.
        method: a Gram method, for example `PCGrad()`, a row method, for example `GradDrop()`, or a
            loss method, for example `SI()`.
        shared: the shared parameters, where they are not to be found out; frozen ones are passed
            over.
        weight_heads: multiply each head's gradients by the tasks' weights too, as
            `(weights * losses).sum().backward()` would; for methods that have weights, and not with
            parts, which have several.
        parts: lists of parameters, for example one a layer, that hold every shared parameter once.
            Each part gets weights of its own, from its own Gram matrix; the method is then a
            `PerPart(method, len(parts))`.
        retain_graph: keep the graph, for another backward through it.

    Returns:
        The report of this step: Gram matrix (None for a loss method), weights, losses and status,
        on the device; see `Report` for row methods.

    Raises:
        TypeError, ValueError: losses, params or shared are not what they have to be, or no
            parameter is shared; parts do not hold each shared parameter once; or shared,
            weight_heads or parts is given with a method that has no use for it. Nothing has been
            written then.
        NotImplementedError: torch.distributed runs more than one rank.
    """
    _refuse_several_ranks()
    tasks, values = named_losses(losses)
    params = check_params(params)
    check_method(method)
    check_options(method, shared, weight_heads, parts)
    if weighs_losses(method):
        return _backward_once(tasks, values, params, method, retain_graph)
    if shared is None:
        _refuse_hidden_reach(values)
    else:
        shared = _trainable(shared, params)
    rows = task_gradients(values, params, retain_graph)
    stacked = _stacked(values)
    return write_gradients(
        rows,
        params,
        cast("Weighting | RowWeighting", method),
        stacked,
        tasks=tasks,
        shared=shared,
        weight_heads=weight_heads,
        parts=parts,
    )


def check_options(method: object, shared: object, weight_heads: bool, parts: object) -> None:
    """Raises where an option is given that the method has no use for."""
    if takes_rows(method) and weight_heads and not method.weighs:
        raise ValueError(
            f"weight_heads= does not apply to {type(method).__name__}: it has no weights, so heads "
            "get their own losses' gradients"
        )
    if takes_rows(method) and parts is not None:
        raise ValueError(
            f"parts= does not apply to {type(method).__name__}: it takes whole gradients, not a "
            "Gram matrix for each part"
        )
    if weight_heads and parts is not None:
        raise ValueError("weight_heads= takes one weight a task, parts= makes one a task and part")
    options = {"shared=": shared, "parts=": parts, "weight_heads=": weight_heads or None}
    given = [name for name, value in options.items() if value is not None]
    if weighs_losses(method) and given:
        name = given[0]
        raise ValueError(
            f"{name} does not apply to {type(method).__name__}: a loss method weighs whole losses, "
            "and so every parameter that they reach, heads too"
        )


def _backward_once(
    tasks: Sequence[str],
    values: Sequence[Tensor],
    params: Sequence[Tensor],
    method: LossWeighting,
    retain_graph: bool,
) -> Report:
    losses = _stacked(values)
    leaf = losses.double().detach().requires_grad_()
    own = [param for param in method.parameters() if param.requires_grad]
    with torch.enable_grad():
        scalar = method(leaf)
    if not isinstance(scalar, Tensor) or scalar.numel() != 1 or not scalar.requires_grad:
        raise ValueError(
            f"{type(method).__name__} must return a scalar tensor that is differentiable in the "
            "losses"
        )
    weights, *own_grads = torch.autograd.grad(
        scalar, [leaf, *own], allow_unused=True, materialize_grads=True
    )
    row = weighted_gradient(values, weights, params, retain_graph)
    _write_row(row, params)
    for param, grad in zip(own, own_grads, strict=True):
        if param.grad is None:
            param.grad = grad
        else:
            param.grad.add_(grad)
    status = torch.where(losses.isfinite(), 0, Status.NON_FINITE.value)
    if isinstance(method.status, Tensor) and method.status.shape == status.shape:
        status = status | method.status
    return Report(tuple(tasks), None, weights, losses, status)


@torch.no_grad()
def _write_row(row: Sequence[Tensor | None], params: Sequence[Tensor]) -> None:
    groups = group_gradients([row], params)
    if not groups:
        raise ValueError("no loss reaches any of the parameters")
    one = torch.ones(1, dtype=torch.float64, device=groups[0].device)
    add_weighted_sum(groups, one, params)


def _stacked(values: Sequence[Tensor]) -> Tensor:
    return torch.stack([loss.detach().reshape(()).to(values[0].device) for loss in values])


@torch.no_grad()
def write_gradients(
    task_grads: TaskGrads,
    params: Sequence[Tensor],
    method: Weighting | RowWeighting,
    losses: Tensor | None = None,
    *,
    tasks: Sequence[str] | None = None,
    shared: Sequence[Tensor] | None = None,
    weight_heads: bool = False,
    parts: Sequence[Sequence[Tensor]] | None = None,
) -> Report:
    """The part of `backward` after the backwards: T lists of P gradients in, .grad out."""
    check_options(method, shared, weight_heads, parts)
    check_lengths(task_grads, params)
    shared = None if shared is None else list(shared)
    balanced, heads = split(task_grads, params, shared)
    sections = [balanced] if parts is None else _sections(parts, params, balanced)
    groups = [
        group_gradients(_columns(task_grads, part), [params[p] for p in part]) for part in sections
    ]
    head_groups = group_gradients(_columns(task_grads, heads), [params[p] for p in heads])

    found = balance(groups, len(task_grads), method, losses, parts is not None)
    add_direction(groups, found, [[params[p] for p in part] for part in sections])
    head_weights = found.weights
    if head_weights is None or not weight_heads:
        head_weights = torch.ones_like(found.status, dtype=torch.float64)
    add_weighted_sum(head_groups, head_weights, [params[p] for p in heads])

    names = tuple(tasks) if tasks is not None else tuple(map(str, range(len(task_grads))))
    return Report(names, found.gram, found.weights, losses, found.status)


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
        chosen = {place[id(param)] for param in _trainable(shared, params)}
        if not any(reached[p] for p in chosen):
            raise ValueError("no loss reaches any of the parameters that shared= names")
    balanced = [p for p, count in enumerate(reached) if count and p in chosen]
    return balanced, [p for p, count in enumerate(reached) if count and p not in chosen]


def _sections(
    parts: Sequence[Sequence[Tensor]], params: Sequence[Tensor], balanced: Sequence[int]
) -> list[list[int]]:
    """Positions of the parameters to balance, part by part; parts may name others as well."""
    place = {id(params[p]): p for p in balanced}
    sections = [[place[id(param)] for param in part if id(param) in place] for part in parts]
    if sorted(p for part in sections for p in part) != sorted(balanced):
        raise ValueError(
            f"parts= must hold each of the {len(balanced)} shared parameters once: "
            f"{sum(map(len, sections))} of its entries are shared parameters"
        )
    return sections


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


def _refuse_hidden_reach(losses: Sequence[Tensor]) -> None:
    """Raises where a gradient of zeros would make another task's head pass for shared."""
    if len(losses) < 2:
        return
    if outputs_of_one_compiled_function(losses):
        raise ValueError(
            "the losses come out of a torch.compile'd function, which reports a gradient, of "
            "zeros, for every parameter it knows: heads cannot be told from what is shared. Name "
            "the shared parameters with shared="
        )
    if entries_of_one_join(losses):
        raise ValueError(
            "the losses are entries of one tensor that torch.cat or torch.stack put together: each "
            "reaches, with zeros, what all of them reach, so heads cannot be told from what is "
            "shared. Give the losses as they were before, or name the shared parameters with "
            "shared="
        )


def _trainable(shared: Sequence[Tensor], params: Sequence[Tensor]) -> list[Tensor]:
    """The shared parameters that require grad; raises where one is not among the parameters."""
    trainable = [param for param in shared if param.requires_grad]
    known = {id(param) for param in params}
    if any(id(param) not in known for param in trainable):
        raise ValueError(
            "shared= names a parameter that is not among the parameters that require grad"
        )
    return trainable


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
