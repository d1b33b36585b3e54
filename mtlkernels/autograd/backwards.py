"""Losses -> gradients: a backward a task, one batched backward, or the part of each above a cut."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from mtlkernels.autograd.backward_errors import explained
from mtlkernels.autograd.cut import Cut, stopped_at
from mtlkernels.autograd.joins import root
from mtlkernels.autograd.overlap import needed_later

Row = list[Tensor | None]


@dataclass(frozen=True)
class Starts:
    """Where T backwards start, and with which cotangents."""

    edges: list[GradientEdge]
    seeds: list[Tensor]


@dataclass(frozen=True)
class Above:
    """What T backwards give that stop at a cut.

    Attributes:
        rows: T lists of P gradients of the parameters above, None elsewhere.
        cotangents: T lists of C gradients at the cut's edges, None where a task does not pass.
    """

    rows: list[Row]
    cotangents: list[Row]


def starts(losses: Sequence[Tensor], scale: Tensor | None = None) -> Starts:
    """Where the backwards of the losses start; their gradients come out `scale` times as long."""
    edges, seeds = [], []
    for loss in losses:
        start, seed = root(loss)
        edges.append(get_gradient_edge(start) if isinstance(start, Tensor) else start)
        seeds.append(seed if scale is None else seed * scale.to(seed))
    return Starts(edges, seeds)


def task_gradients(
    losses: Sequence[Tensor],
    params: Sequence[Tensor],
    retain_graph: bool = False,
    scale: Tensor | None = None,
    keep: Callable[[Row], Row] | None = None,
) -> list[Row]:
    """T backwards, see `rows_of_tasks`.

    Args:
        losses: T scalar losses.
        params: P parameters.
        retain_graph: keep the graph after the last backward too.
        scale: what the gradients are multiplied by, a scalar on the device.
        keep: given a task's gradients, what is kept of them; called before the next backward, so
            that only one task's gradients stand beside what is kept.

    Returns:
        T lists of P gradients, None where the loss does not reach the parameter. They are
        autograd's own tensors: they may be expanded or share memory.
    """
    rows = rows_of_tasks(losses, params, retain_graph, scale)
    return [row if keep is None else keep(row) for row in rows]


def rows_of_tasks(
    losses: Sequence[Tensor],
    params: Sequence[Tensor],
    retain_graph: bool = False,
    scale: Tensor | None = None,
) -> Iterator[Row]:
    """A backward a task. Each frees its graph, but where a later one goes through some of it."""
    roots = [root(loss) for loss in losses]
    later = needed_later([start for start, _ in roots])
    for t, (start, seed) in enumerate(roots):
        seeds: Sequence[Tensor | None] = [seed if scale is None else seed * scale.to(seed)]
        if scale is None and start is losses[t] and not torch.compiler.is_compiling():
            seeds = [None]  # torch makes the same one, and has less to check
        yield list(_grad([start], params, seeds, retain_graph or later[t], again=t > 0))


def weighted_gradient(
    losses: Sequence[Tensor],
    weights: Tensor,
    params: Sequence[Tensor],
    retain_graph: bool = False,
) -> Row:
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
    return list(_grad(list(losses), params, cotangents, retain_graph))


def gradients_above(
    starts: Starts, cut: Cut, params: Sequence[Tensor], retain_graph: bool = False
) -> Above:
    """T backwards down to the cut.

    The graph above goes with them, but where a later one needs it.
    """
    above = Above([], [])
    number = {(edge.node, edge.output_nr): e for e, edge in enumerate(cut.edges)}
    last = len(starts.edges) - 1
    with stopped_at(cut) as passed:
        for t, (edge, seed) in enumerate(zip(starts.edges, starts.seeds, strict=True)):
            own, crossed = cut.above[t], cut.crossed[t]
            retain = retain_graph or cut.nested or (cut.entangled and t < last)
            wanted: list[Tensor | GradientEdge] = [params[p] for p in own]
            wanted += [cut.edges[e] for e in crossed]
            passed.clear()
            found = _grad([edge], wanted, [seed], retain, again=t > 0) if wanted else ()
            row: Row = [None] * len(params)
            for p, grad in zip(own, found, strict=False):
                row[p] = grad
            start = number.get((edge.node, edge.output_nr))
            if start is not None:  # the loss itself is what another one reaches
                passed[start] = seed
            above.rows.append(row)
            above.cotangents.append([passed.get(e) for e in range(len(cut.edges))])
    return above


@contextmanager
def without_hooks(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Hooks of some tensors do not run in here: they belong to another backward pass."""
    hidden = []
    for tensor in tensors:
        hooks = tensor._backward_hooks
        if hooks:
            hidden.append((hooks, dict(hooks)))
            hooks.clear()
    try:
        yield
    finally:
        for hooks, own in hidden:
            hooks.update(own)


def gradients_below(
    cut: Cut,
    cotangents: Sequence[Tensor | None],
    params: Sequence[Tensor],
    retain_graph: bool = False,
    again: bool = False,
) -> Row:
    """One backward from the cut's edges; P gradients, None where they do not reach.

    again: whether another backward ran through that part of the graph before.
    """
    passed = [(edge, c) for edge, c in zip(cut.edges, cotangents, strict=True) if c is not None]
    if not passed or not params:
        return [None] * len(params)
    edges, kept = zip(*passed, strict=True)
    seeds = [c.clone() for c in kept]  # a Function may work in place on the gradient it gets
    return list(_grad(edges, params, seeds, retain_graph, again=again))


def gradients_through(edge: GradientEdge, grads: Tensor, param: Tensor) -> Tensor | None:
    """T gradients of a parameter from those at an edge, which leads to it through one node."""
    return _grad([edge], [param], [grads], True, batched=True, again=True)[0]


def add_below(
    cut: Cut,
    cotangents: Sequence[Tensor | None],
    params: Sequence[Tensor],
    retain_graph: bool = False,
    again: bool = False,
) -> None:
    """One backward from the cut's edges that adds to .grad, as `loss.backward()` does.

    So it takes no memory beside .grad, and no copy.

    again: whether another backward ran through that part of the graph before.
    """
    passed = [(edge, c) for edge, c in zip(cut.edges, cotangents, strict=True) if c is not None]
    if passed and params:
        edges, seeds = zip(*passed, strict=True)
        with explained(again=again):
            torch.autograd.backward(edges, seeds, retain_graph=retain_graph, inputs=list(params))


def rows_below(
    cut: Cut,
    cotangents: Sequence[Sequence[Tensor | None]],
    params: Sequence[Tensor],
    retain_graph: bool = False,
) -> list[Row]:
    """One batched backward of T tasks from the cut's edges: T lists of P gradients.

    Each operation of the graph runs once on T gradients where torch can batch it, else T times. A
    task that does not reach a parameter below has zeros there.
    """
    found = stacked_below(cut, cotangents, params, retain_graph)
    return [[None if grad is None else grad[t] for grad in found] for t in range(len(cotangents))]


def stacked_below(
    cut: Cut,
    cotangents: Sequence[Sequence[Tensor | None]],
    wanted: Sequence[Tensor | GradientEdge],
    retain_graph: bool = False,
) -> Row:
    """`rows_below` of parameters or edges, as one (T, *shape) tensor each."""
    edges, seeds = _stacked(cut, cotangents)
    if not edges or not wanted:
        return [None] * len(wanted)
    return list(_grad(edges, wanted, seeds, retain_graph, batched=True))


def visit_rows_below(
    cut: Cut,
    cotangents: Sequence[Sequence[Tensor | None]],
    params: Sequence[Tensor],
    visit: Callable[[int, Tensor], None],
) -> None:
    """`rows_below` that keeps no row: each parameter's is shown once, while the backward runs.

    Args:
        cut, cotangents, params: as for `rows_below`. The graph stays.
        visit: called with a parameter's position and its (T, *shape) gradients.
    """
    edges, seeds = _stacked(cut, cotangents)
    if not edges:
        return
    count = len(cotangents)

    def hook(p: int, grad: Tensor) -> Tensor:
        # torch keeps the T gradients of a batched backward behind a tensor of one's shape.
        visit(p, torch._remove_batch_dim(grad, 1, count, 0))
        return torch.zeros((), dtype=grad.dtype, device=grad.device).expand(grad.shape)

    handles = [
        param.register_hook(lambda grad, p=p: hook(p, grad)) for p, param in enumerate(params)
    ]
    try:
        _grad(edges, params, seeds, True, batched=True)
    finally:
        for handle in handles:
            handle.remove()


def _stacked(
    cut: Cut, cotangents: Sequence[Sequence[Tensor | None]]
) -> tuple[list[GradientEdge], list[Tensor]]:
    """The edges that any task passes, and all tasks' gradients there as one (T, ...) tensor."""
    edges, seeds = [], []
    for e, edge in enumerate(cut.edges):
        column = [row[e] for row in cotangents]
        first = next((c for c in column if c is not None), None)
        if first is not None:
            edges.append(edge)
            zero = torch.zeros_like(first)
            seeds.append(torch.stack([zero if c is None else c for c in column]))
    return edges, seeds


def _grad(
    outputs: Sequence[Tensor | GradientEdge],
    inputs: Sequence[Tensor | GradientEdge],
    seeds: Sequence[Tensor | None],
    retain_graph: bool,
    batched: bool = False,
    again: bool = False,
) -> tuple[Tensor | None, ...]:
    with explained(batched, again):
        return torch.autograd.grad(
            cast("Sequence[Tensor]", outputs),
            cast("Sequence[Tensor]", inputs),
            grad_outputs=seeds,
            retain_graph=retain_graph,
            allow_unused=True,
            is_grads_batched=batched,
        )


def stack(values: Sequence[Tensor]) -> Tensor:
    """(T) the losses' values, on the first one's device."""
    return torch.stack([loss.detach().reshape(()).to(values[0].device) for loss in values])
