"""Ways to get PCGrad's direction from per-task gradients: ours, and what people use today.

A provider is set up with a gradient list and returns a function to time, whose result is P tensors.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
from torch import Tensor, nn

import mtlkernels
from mtlkernels import ops

Run = Callable[[], list[Tensor]]


def _views(flat: Tensor, grads: list[Tensor], num_tasks: int) -> list[Tensor]:
    models = grads[: len(grads) // num_tasks]
    offsets = ops.flat_offsets([model.numel() for model in models])
    return [
        flat[at : at + model.numel()].view(model.shape)
        for model, at in zip(models, offsets, strict=False)
    ]


def ours(grads: list[Tensor], num_tasks: int) -> Run:
    """gram, weights, combine into the direction of the step before, as a training loop keeps it."""
    method = mtlkernels.PCGrad()
    flat = ops.combine(grads, torch.zeros(num_tasks, dtype=torch.float64))
    views = _views(flat, grads, num_tasks)

    def run() -> list[Tensor]:
        ops.combine_out(grads, method(ops.gram(grads, num_tasks)), flat)
        return views

    return run


def ours_fresh(grads: list[Tensor], num_tasks: int) -> Run:
    """The same into newly allocated memory each time, as after zero_grad(set_to_none=True)."""
    method = mtlkernels.PCGrad()

    def run() -> list[Tensor]:
        flat = ops.combine(grads, method(ops.gram(grads, num_tasks)))
        return _views(flat, grads, num_tasks)

    return run


def aggregate(grads: list[Tensor], num_tasks: int) -> Run:
    """The public function: canonicalisation, the three ops, views and report."""
    method = mtlkernels.PCGrad()
    count = len(grads) // num_tasks
    rows = [grads[t * count : (t + 1) * count] for t in range(num_tasks)]

    def run() -> list[Tensor]:
        direction, _ = mtlkernels.aggregate(rows, method)
        return [d for d in direction if d is not None]

    return run


def _torchjd(grads: list[Tensor], num_tasks: int, *, optimized: bool) -> Run:
    from torchjd.aggregation import PCGrad
    from torchjd.autojac import jac_to_grad

    count = len(grads) // num_tasks
    params = [nn.Parameter(torch.zeros_like(grad)) for grad in grads[:count]]
    for p, param in enumerate(params):
        param.jac = torch.stack(grads[p::count])  # type: ignore[attr-defined]
    aggregator = PCGrad()

    def run() -> list[Tensor]:
        for param in params:
            param.grad = None
        jac_to_grad(params, aggregator, retain_jac=True, optimize_gramian_computation=optimized)
        return [param.grad for param in params if param.grad is not None]

    return run


def torchjd(grads: list[Tensor], num_tasks: int) -> Run:
    """torchjd's jac_to_grad as it comes: one concatenated Jacobian."""
    return _torchjd(grads, num_tasks, optimized=False)


def torchjd_gram(grads: list[Tensor], num_tasks: int) -> Run:
    """torchjd's jac_to_grad with optimize_gramian_computation: a Gram matrix a parameter."""
    return _torchjd(grads, num_tasks, optimized=True)


def textbook(grads: list[Tensor], num_tasks: int) -> Run:
    """Algorithm 1 of arXiv 2001.06782 on flattened gradients, as most repositories write it."""
    count = len(grads) // num_tasks
    rng = random.Random(0)

    def run() -> list[Tensor]:
        flat = [
            torch.cat([g.reshape(-1) for g in grads[t * count : (t + 1) * count]])
            for t in range(num_tasks)
        ]
        projected = [row.clone() for row in flat]
        for i, row in enumerate(projected):
            others = [j for j in range(num_tasks) if j != i]
            rng.shuffle(others)
            for j in others:
                dot = torch.dot(row, flat[j])
                if dot < 0:
                    row -= dot / flat[j].norm() ** 2 * flat[j]
        direction = torch.stack(projected).sum(dim=0)
        pieces = direction.split([g.numel() for g in grads[:count]])
        return [piece.view_as(g) for piece, g in zip(pieces, grads, strict=False)]

    return run


PROVIDERS: dict[str, Callable[[list[Tensor], int], Run]] = {
    "ours": ours,
    "ours, fresh direction": ours_fresh,
    "ours, aggregate()": aggregate,
    "torchjd": torchjd,
    "torchjd, optimized Gram": torchjd_gram,
    "textbook loop": textbook,
}
