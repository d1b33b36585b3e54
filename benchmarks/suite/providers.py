"""Ways to get a direction from per-task gradients: ours, torch's own, and what people use today.

A provider is set up for a number of tasks and a method and gives a function of a task-major
gradient list; that one prepares what a training loop would have at hand and gives what is timed,
whose result is P tensors. The ways written here in plain torch take their weights from our solver,
so that they differ from ours by the passes over the gradients alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

import mtlkernels
from benchmarks.suite import peers
from benchmarks.suite.peers import NotOfferedError, Prepare, Run
from examples.demo.names import gram_method
from mtlkernels import ops, reference

Provider = Callable[[int, str], Prepare]


def _count(grads: Sequence[Tensor], num_tasks: int) -> int:
    return len(grads) // num_tasks


def _views(flat: Tensor, grads: list[Tensor], num_tasks: int) -> list[Tensor]:
    models = grads[: _count(grads, num_tasks)]
    offsets = ops.flat_offsets([model.numel() for model in models])
    return [
        flat[at : at + model.numel()].view(model.shape)
        for model, at in zip(models, offsets, strict=False)
    ]


def ours(num_tasks: int, method: str) -> Prepare:
    """gram, weights, combine into the direction of the step before, as a training loop keeps it."""
    weigh = gram_method(method)

    def prepare(grads: list[Tensor]) -> Run:
        zeros = torch.zeros(num_tasks, dtype=torch.float64, device=grads[0].device)
        flat = ops.combine(grads, zeros)
        views = _views(flat, grads, num_tasks)

        def run() -> list[Tensor]:
            ops.combine_out(grads, weigh(ops.gram(grads, num_tasks)), flat)
            return views

        return run

    return prepare


def ours_fresh(num_tasks: int, method: str) -> Prepare:
    """The same into newly allocated memory each time, as after zero_grad(set_to_none=True)."""
    weigh = gram_method(method)

    def run(grads: list[Tensor]) -> list[Tensor]:
        flat = ops.combine(grads, weigh(ops.gram(grads, num_tasks)))
        return _views(flat, grads, num_tasks)

    return lambda grads: lambda: run(grads)


def ours_aggregate(num_tasks: int, method: str) -> Prepare:
    """The public function: canonicalisation, the three ops, views and report."""
    weigh = gram_method(method)

    def prepare(grads: list[Tensor]) -> Run:
        count = _count(grads, num_tasks)
        rows = [grads[t * count : (t + 1) * count] for t in range(num_tasks)]

        def run() -> list[Tensor]:
            direction, _ = mtlkernels.aggregate(rows, weigh)
            return [d for d in direction if d is not None]

        return run

    return prepare


def ours_triton(num_tasks: int, method: str) -> Prepare:
    """The Triton kernels, whatever serves the ops."""
    if not torch.cuda.is_available():
        raise NotOfferedError("Triton's kernels serve GPUs")
    from mtlkernels.triton_kernels import OPS

    return _chain(num_tasks, method, OPS["gram"], OPS["combine"])


def _chain(
    num_tasks: int, method: str, gram: Callable[..., Tensor], combine: Callable[..., Tensor]
) -> Prepare:
    """A Gram matrix and a weighted sum that take and give what the ops do."""
    weigh = gram_method(method)

    def run(grads: list[Tensor]) -> list[Tensor]:
        return _views(combine(grads, weigh(gram(grads, num_tasks))), grads, num_tasks)

    return lambda grads: lambda: run(grads)


def plain(num_tasks: int, method: str) -> Prepare:
    """What serves the ops where there is no kernel: plain torch, sums in float64."""
    return _chain(num_tasks, method, reference.gram, reference.combine)


def plain_compiled(num_tasks: int, method: str) -> Prepare:
    """The same under torch.compile; the weights are one op of its graph."""
    return _compiled(plain(num_tasks, method))


def matmul(num_tasks: int, method: str) -> Prepare:
    """The gradients copied into one (T, N) matrix G: G G^T, and w^T G."""
    weigh = gram_method(method)

    def run(grads: list[Tensor]) -> list[Tensor]:
        count = _count(grads, num_tasks)
        rows = [grads[t * count : (t + 1) * count] for t in range(num_tasks)]
        G = torch.stack([torch.cat([g.reshape(-1) for g in row]) for row in rows])
        weights = weigh((G @ G.T).double())
        pieces = (weights.to(G.dtype) @ G).split([g.numel() for g in rows[0]])
        return [piece.view(g.shape) for piece, g in zip(pieces, rows[0], strict=True)]

    return lambda grads: lambda: run(grads)


def matmul_compiled(num_tasks: int, method: str) -> Prepare:
    """The same under torch.compile."""
    return _compiled(matmul(num_tasks, method))


def _compiled(prepare: Prepare) -> Prepare:
    torch.compiler.reset()
    compiled = torch.compile(lambda grads: prepare(grads)(), dynamic=False)
    return lambda grads: lambda: compiled(grads)


def foreach(num_tasks: int, method: str) -> Prepare:
    """Chains of torch._foreach_*, nothing flattened: a pass for each pair and for each task."""
    weigh = gram_method(method)

    def run(grads: list[Tensor]) -> list[Tensor]:
        count = _count(grads, num_tasks)
        rows = [grads[t * count : (t + 1) * count] for t in range(num_tasks)]
        K = grads[0].new_zeros((num_tasks, num_tasks), dtype=torch.float64)
        for i in range(num_tasks):
            for j in range(i + 1):
                products: Any = torch._foreach_mul(rows[i], rows[j])
                K[i, j] = K[j, i] = torch.stack(
                    [x.sum(dtype=torch.float32) for x in products]
                ).sum()
        weights = weigh(K).tolist()
        total: Any = torch._foreach_mul(rows[0], weights[0])
        for row, weight in zip(rows[1:], weights[1:], strict=True):
            torch._foreach_add_(total, row, alpha=weight)
        return list(total)

    return lambda grads: lambda: run(grads)


OURS = "ours"
PROVIDERS: dict[str, Provider] = {
    OURS: ours,
    "ours fresh direction": ours_fresh,
    "ours aggregate()": ours_aggregate,
    "ours Triton": ours_triton,
    "reference": plain,
    "reference compiled": plain_compiled,
    "stack + matmul": matmul,
    "stack + matmul compiled": matmul_compiled,
    "torch._foreach": foreach,
    "torchjd": peers.torchjd,
    "torchjd optimized Gram": peers.torchjd_gram,
    "conflictfree": peers.conflictfree,
    "pytorch_optimizer": peers.pytorch_optimizer,
    "textbook loop": peers.textbook,
}
"""By name; ours is the one that the others are compared with."""

# Compiling takes from seconds to minutes for each number of tasks and tensors.
SLOW_TO_SET_UP = ("reference compiled", "stack + matmul compiled")
