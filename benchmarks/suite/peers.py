"""Other people's implementations, called as their documentation says, and the paper's loop.

Each begins with the gradients that its own backward would leave and ends with P tensors: what it
does in between, copies included, is what a training step with it pays. Imported when asked for.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

Run = Callable[[], list[Tensor]]
Prepare = Callable[[list[Tensor]], Run]

# Our name of a method -> torchjd's aggregator, and how to set it up to give the same sum.
TORCHJD: dict[str, Callable[[Any], Any]] = {
    "pcgrad": lambda module: module.PCGrad(),
    "mgda": lambda module: module.MGDA(),
    "upgrad": lambda module: module.UPGrad(),
    "dualproj": lambda module: module.DualProj(),
    "cagrad": lambda module: module.CAGrad(c=0.4),
    "imtlg": lambda module: module.IMTLG(),
    "alignedmtl": lambda module: module.AlignedMTL(),
    "mean": lambda module: module.Mean(),
    "sum": lambda module: module.Sum(),
}


class NotOfferedError(RuntimeError):
    """A provider does not have the method, or not on this machine."""


def _require(module: str, package: str) -> Any:
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != module.partition(".")[0]:
            raise
        raise NotOfferedError(
            f"{package} is not installed: pip install 'mtlkernels[bench]'"
        ) from error


def _only_pcgrad(method: str, package: str) -> None:
    if method != "pcgrad":
        raise NotOfferedError(f"{package} is measured with pcgrad alone")


def _torchjd(num_tasks: int, method: str, *, optimized: bool) -> Prepare:
    module = _require("torchjd.aggregation", "torchjd")
    jac_to_grad = _require("torchjd.autojac", "torchjd").jac_to_grad
    if method not in TORCHJD:
        raise NotOfferedError(f"no aggregator of torchjd is known to be the same as {method}")
    aggregator = TORCHJD[method](module)

    def prepare(grads: list[Tensor]) -> Run:
        count = len(grads) // num_tasks
        params = [nn.Parameter(torch.zeros_like(grad)) for grad in grads[:count]]
        for p, param in enumerate(params):
            param.jac = torch.stack(grads[p::count])  # type: ignore[attr-defined]

        def run() -> list[Tensor]:
            for param in params:
                param.grad = None
            jac_to_grad(params, aggregator, retain_jac=True, optimize_gramian_computation=optimized)
            return [param.grad for param in params if param.grad is not None]

        return run

    return prepare


def torchjd(num_tasks: int, method: str) -> Prepare:
    """torchjd's jac_to_grad as it comes: one concatenated Jacobian."""
    return _torchjd(num_tasks, method, optimized=False)


def torchjd_gram(num_tasks: int, method: str) -> Prepare:
    """torchjd's jac_to_grad with optimize_gramian_computation: a Gram matrix a parameter."""
    return _torchjd(num_tasks, method, optimized=True)


def conflictfree(num_tasks: int, method: str) -> Prepare:
    """conflictfree's PCGradOperator on flattened gradients, which is what it takes; fixed order."""
    operator = _require("conflictfree.grad_operator", "conflictfree").PCGradOperator()
    _only_pcgrad(method, "conflictfree")

    def run(grads: list[Tensor]) -> list[Tensor]:
        return _split(operator.calculate_gradient(_flat(grads, num_tasks)), grads)

    return lambda grads: lambda: run(grads)


class _Stored:
    """A loss whose backward is already done: it leaves one task's gradients in .grad."""

    def __init__(self, params: list[nn.Parameter], grads: list[Tensor]) -> None:
        self.params, self.grads = params, grads

    def backward(self, retain_graph: bool) -> None:
        for param, grad in zip(self.params, self.grads, strict=True):
            param.grad = grad


def pytorch_optimizer(num_tasks: int, method: str) -> Prepare:
    """pytorch_optimizer's PCGrad.pc_backward with backwards that cost nothing."""
    wrapper = _require("pytorch_optimizer", "pytorch_optimizer").PCGrad
    _only_pcgrad(method, "pytorch_optimizer")

    def prepare(grads: list[Tensor]) -> Run:
        count = len(grads) // num_tasks
        params = [nn.Parameter(torch.empty_like(grad)) for grad in grads[:count]]
        optimizer = wrapper(torch.optim.SGD(params, lr=1.0), reduction="sum")
        losses = [_Stored(params, grads[t * count : (t + 1) * count]) for t in range(num_tasks)]

        def run() -> list[Tensor]:
            optimizer.pc_backward(losses)
            return [param.grad for param in params if param.grad is not None]

        return run

    return prepare


def textbook(num_tasks: int, method: str) -> Prepare:
    """Algorithm 1 of arXiv 2001.06782 on flattened gradients, as most repositories write it."""
    _only_pcgrad(method, "the paper's loop")
    rng = random.Random(0)

    def run(grads: list[Tensor]) -> list[Tensor]:
        flat = _flat(grads, num_tasks)
        projected = [row.clone() for row in flat]
        for i, row in enumerate(projected):
            others = [j for j in range(num_tasks) if j != i]
            rng.shuffle(others)
            for j in others:
                dot = torch.dot(row, flat[j])
                if dot < 0:
                    row -= dot / flat[j].norm() ** 2 * flat[j]
        return _split(torch.stack(projected).sum(dim=0), grads)

    return lambda grads: lambda: run(grads)


def _flat(grads: list[Tensor], num_tasks: int) -> list[Tensor]:
    count = len(grads) // num_tasks
    rows = (grads[t * count : (t + 1) * count] for t in range(num_tasks))
    return [torch.cat([grad.reshape(-1) for grad in row]) for row in rows]


def _split(direction: Tensor, grads: list[Tensor]) -> list[Tensor]:
    """A flat direction as P tensors, views of it; `grads` tells their shapes, task after task."""
    views, at = [], 0
    for grad in grads:
        if at == direction.numel():
            break
        views.append(direction[at : at + grad.numel()].view(grad.shape))
        at += grad.numel()
    return views
