"""A scalar with the value of the summed losses, whose own backward pass takes a balanced step.

It is the output of an autograd Function whose only differentiable input is a tensor of its own, not
the losses: so a backward pass from it does not enter their graphs. The Function's backward runs the
task backward passes inside that one, and returns no gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from mtlkernels.autograd.graph import nodes
from mtlkernels.engine.compile import refuse_tracing
from mtlkernels.engine.parameters import Losses, given_losses

Step = Callable[[Losses, Tensor | None, bool], None]
"""Takes the losses, the factor of .grad (None for 1), and whether to keep the graph."""


def balanced_sum(losses: Losses, step: Step) -> Tensor:
    """The sum of the losses, 0-d; its backward pass calls `step`.

    Without gradients, under `no_grad` or where no loss has a graph, it is the plain sum.

    Raises:
        TypeError, ValueError: as `given_losses`; or some losses have a graph and others do not.
        NotImplementedError: torch.compile traces.
    """
    if torch.compiler.is_compiling():
        refuse_tracing(
            "inside torch.compile a loss cannot balance itself: compile the step with "
            "mtlkernels.compile_step and call optimizer.backward(losses) in it, or compile the "
            "model alone"
        )
    given = given_losses(losses, with_graph=False)
    device = given.values[0].device
    total = sum(loss.detach().reshape(()).to(device) for loss in given.values)
    assert isinstance(total, Tensor)
    if not torch.is_grad_enabled() or not any(loss.requires_grad for loss in given.values):
        return total
    # In a container of our own: the caller's may change, and a tensor be unbound only under grad.
    values = dict(zip(given.present, given.values, strict=True))
    in_order = [values.get(t) for t in range(len(given.tasks))]
    kept: Losses = dict(zip(given.tasks, in_order, strict=True)) if given.named else in_order
    given_losses(kept)  # all that are there must have a graph
    if any(node.name() == "_BalancedSumBackward" for node in nodes(given.values)):
        raise ValueError(
            "a loss depends on another balanced loss, whose gradients are written and not passed "
            "on: give the losses themselves"
        )
    leaf = torch.empty((), device=device, requires_grad=True)
    return _BalancedSum.apply(leaf, total, kept, given.values, step)


_LEAF = "torch::autograd::AccumulateGrad"
_waiting: WeakSet[Any] = WeakSet()  # nodes of balanced losses that no backward pass has run yet


class _BalancedSum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, leaf: Tensor, total: Tensor, losses: Losses, values: list[Tensor], step: Step
    ) -> Tensor:
        ctx.step = (losses, values, step)
        ctx.set_materialize_grads(False)
        _waiting.add(ctx)
        return total.clone()

    @staticmethod
    def backward(ctx: Any, factor: Tensor | None) -> tuple[None, ...]:
        nothing = (None,) * 5
        if torch.is_grad_enabled():
            raise RuntimeError(
                "create_graph=True differentiates twice, and a balanced .grad has no graph: leave "
                "it out"
            )
        if ctx.step is None:
            raise RuntimeError(
                "this balanced loss was differentiated before, and it balances once: compute "
                "another one, optimizer.loss(losses), for another backward"
            )
        if factor is None:
            return nothing
        (losses, values, step), ctx.step = ctx.step, None
        _waiting.discard(ctx)
        # As in a call outside of a backward pass, whose code runs with gradients enabled.
        with torch.enable_grad():
            step(losses, _scale(factor), _needed_later(values))
        return nothing


def _scale(factor: Tensor) -> Tensor | None:
    """None where the factor is known to be 1: reading it is free on a CPU, and waits on a GPU."""
    factor = factor.detach()
    return None if factor.device.type == "cpu" and factor == 1 else factor


def _needed_later(losses: Sequence[Tensor]) -> bool:
    """Whether anything runs through the losses' graphs after this step.

    The backward pass around it may be told to keep the graph, may reach another balanced loss that
    has not run, or may itself go through nodes below the losses: from a penalty on activations.
    """
    if torch._C._autograd._get_current_graph_task_keep_graph():
        return True
    runs = torch._C._will_engine_execute_node
    if any(runs(other) for other in _waiting):
        return True
    return any(node.name() != _LEAF and runs(node) for node in nodes(losses))


def writes_too(params: Iterable[Tensor]) -> bool:
    """Whether the backward pass around this step adds to the .grad of parameters, of a penalty."""
    runs = torch._C._will_engine_execute_node
    return any(p.requires_grad and p.is_leaf and runs(get_gradient_edge(p).node) for p in params)


@contextmanager
def restored(params: Iterable[Tensor], in_place: bool) -> Iterator[None]:
    """Where something raises in here, .grad is afterwards as it was.

    in_place: whether a backward pass adds to .grad, which takes copies of those that exist.
    """
    before = [
        (param, param.grad, param.grad.clone() if in_place and param.grad is not None else None)
        for param in params
    ]
    try:
        yield
    except BaseException:
        with torch.no_grad():
            for param, grad, copy in before:
                if grad is not None and copy is not None:
                    grad.copy_(copy)
                param.grad = grad
        raise
