"""A loss method's step: one backward, with weights from the losses alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mtlkernels.aggregation.direction import add_weighted_sum
from mtlkernels.aggregation.families import LossWeighting
from mtlkernels.aggregation.layout import group_gradients
from mtlkernels.autograd.backwards import stack, weighted_gradient
from mtlkernels.report import Report, Status


def backward_once(
    tasks: tuple[str, ...],
    values: Sequence[Tensor],
    params: Sequence[Tensor],
    method: LossWeighting,
    scale: Tensor | None,
    retain_graph: bool,
) -> Report:
    """Every parameter gets sum_t w_t g_t, w_t the slope of the method's scalar in loss t."""
    losses = stack(values)
    told = weigh_losses(method, losses)
    factor = 1.0 if scale is None else scale.to(told.weights)
    write_row(weighted_gradient(values, told.weights * factor, params, retain_graph), params)
    return told.finish(tasks, losses, method, scale)


@dataclass
class Told:
    """What a loss method says of T losses: weights, and the gradients of what it learns itself."""

    weights: Tensor
    own: list[nn.Parameter]
    own_grads: Sequence[Tensor]

    def finish(
        self, tasks: tuple[str, ...], losses: Tensor, method: LossWeighting, scale: Tensor | None
    ) -> Report:
        """Adds the method's own gradients to its parameters' .grad; the step's report."""
        for param, grad in zip(self.own, self.own_grads, strict=True):
            grad = grad if scale is None else grad * scale.to(grad)
            if param.grad is None:
                param.grad = grad
            else:
                param.grad.add_(grad)
        status = torch.where(losses.isfinite(), 0, Status.NON_FINITE.value)
        if isinstance(method.status, Tensor) and method.status.shape == status.shape:
            status = status | method.status
        collected = "one backward of the method's own loss"
        return Report(tasks, None, self.weights, losses, status, collected)


def weigh_losses(method: LossWeighting, losses: Tensor) -> Told:
    """The gradient of a loss method's scalar in its losses, (T) float64, and in what it learns."""
    leaf = losses.double().detach().requires_grad_()
    own = [param for param in _learned(method) if param.requires_grad]
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
    return Told(weights, own, own_grads)


def _learned(method: LossWeighting) -> list[nn.Parameter]:
    """What a method learns, also where `method.parameters()` cannot be traced.

    It cannot be once a traced step has replaced a buffer of the method.
    """
    if not isinstance(method, nn.Module):
        return list(method.parameters())
    found = [param for param in method._parameters.values() if param is not None]
    for child in method._modules.values():
        if child is not None:
            found += [param for param in child.parameters() if all(param is not p for p in found)]
    return found


@torch.no_grad()
def write_row(row: Sequence[Tensor | None], params: Sequence[Tensor]) -> None:
    """Adds P gradients, or None, to the parameters' .grad; sparse and complex ones as they are."""
    apart = [
        grad is not None and (grad.layout != torch.strided or grad.is_complex()) for grad in row
    ]
    groups = group_gradients(
        [[None if other else grad for grad, other in zip(row, apart, strict=True)]], params
    )
    if not groups and not any(apart):
        raise ValueError("no loss reaches any of the parameters")
    if groups:
        one = torch.ones(1, dtype=torch.float64, device=groups[0].device)
        add_weighted_sum(groups, one, params)
    for param, grad, other in zip(params, row, apart, strict=True):
        if other and grad is not None:
            _add(param, grad)


def _add(param: Tensor, grad: Tensor) -> None:
    """Adds a sparse or complex gradient to .grad, as autograd does."""
    if param.grad is None:
        param.grad = grad.clone()
    elif param.grad.layout == torch.strided:
        param.grad.add_(grad)
    else:
        param.grad = grad + param.grad
