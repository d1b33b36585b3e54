"""Every op with arguments for its contract's edge cases."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from inputs import FEW, sample, sample_weights
from torch import Tensor

from mtlkernels import ops


def lists(*names: str, requires_grad: bool = False) -> Iterator[tuple[list[Tensor], int]]:
    for name in names:
        grads, num_tasks = sample(name, torch.float32)
        yield [g.detach().requires_grad_(requires_grad) for g in grads], num_tasks


def gram_samples() -> Iterator[tuple]:
    yield from lists(*FEW, "tasks_8")
    yield from lists("ordinary", "one_task", "absent_in_one_task", requires_grad=True)
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        yield sample("ordinary", dtype)


def combine_samples() -> Iterator[tuple]:
    for grads, num_tasks in gram_samples():
        weights = sample_weights(num_tasks).requires_grad_(grads[0].requires_grad)
        yield grads, weights
    yield grads, weights.float()


def combine_out_samples() -> Iterator[tuple]:
    names = ["ordinary", "absent_in_some_tasks", "zero_size_only", "transposed", "stride_zero"]
    for beta, (grads, num_tasks) in enumerate(lists(*names)):
        weights = sample_weights(num_tasks)
        yield grads, weights, torch.ones_like(ops.combine(grads, weights)), -0.5 * beta
    for dtype in (torch.bfloat16, torch.float16):
        grads, num_tasks = sample("ordinary", dtype)
        weights = sample_weights(num_tasks)
        for wide in (dtype, torch.float32):
            yield grads, weights, torch.ones_like(ops.combine(grads, weights), dtype=wide), 0.5


def grams() -> Iterator[Tensor]:
    for grads, num_tasks in lists("ordinary", "one_task", "tasks_8", "zero_size_only"):
        yield ops.gram(grads, num_tasks)


def order_of(K: Tensor) -> Tensor:
    return ops.visiting_order(torch.tensor(3), torch.tensor(1), len(K))


def preferences(K: Tensor) -> tuple[Tensor, Tensor]:
    return K.new_empty(0), K.new_ones(len(K))


def numbers_of(K: Tensor) -> Tensor:
    return torch.linspace(0.5, 2, len(K), dtype=torch.float64)


def row_samples() -> Iterator[tuple[list[Tensor], int, int]]:
    """Gradient lists with the length of their flat direction."""
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        for name in (
            "ordinary",
            "one_task",
            "absent_in_some_tasks",
            "zero_size_only",
            "transposed",
        ):
            grads, num_tasks = sample(name, dtype)
            numels = [max(g.numel() for g in grads[p::P]) for P in [len(grads) // num_tasks]
                      for p in range(P)]  # fmt: skip
            yield grads, num_tasks, ops.flat_offsets(numels)[-1]


def state_of(grads: list[Tensor], num_tasks: int, length: int) -> Tensor:
    return torch.ones(num_tasks, length, dtype=torch.promote_types(grads[0].dtype, torch.float32))


def drops(T: int) -> tuple[Tensor, Tensor, Tensor]:
    return torch.tensor(5), torch.tensor(2), torch.linspace(0, 1, T, dtype=torch.float64)


def factors(T: int) -> tuple[Tensor, Tensor]:
    return torch.linspace(0.5, 2, T, dtype=torch.float64), torch.tensor(0.3, dtype=torch.float64)


OP_SAMPLES: dict[str, Callable[[], Iterator[tuple]]] = {
    "gram": gram_samples,
    "combine": combine_samples,
    "combine_out": combine_out_samples,
    "task_status": lambda: ((K,) for K in grams()),
    "visiting_order": lambda: ((torch.tensor(5), torch.tensor(2), T) for T in (1, 2, 5)),
    "pcgrad": lambda: ((K, order_of(K), mean) for K in grams() for mean in (False, True)),
    "pcgrad_drawn": lambda: (
        (K, torch.tensor(5), torch.tensor(2), mean) for K in grams() for mean in (False, True)
    ),
    "cagrad": lambda: ((K, 0.4, int(r), r == 0) for K in grams() for r in ops.Rescale),
    "avgnorm": lambda: ((K, int(s), 2.0) for K in grams() for s in ops.NormScale),
    "mgda": lambda: ((K,) for K in grams()),
    "imgrad": lambda: ((K, 0.8, int(f), 1) for K in grams() for f in ops.IMGradForm),
    "dualproj": lambda: ((K, p) for K in grams() for p in preferences(K)),
    "upgrad": lambda: ((K, p) for K in grams() for p in preferences(K)),
    "gradvac": lambda: ((K, order_of(K), 0.1 * torch.ones_like(K), 0.5, True) for K in grams()),
    "gradnorm": lambda: ((K, *3 * [torch.ones_like(K[0])], 1.5, 0.025) for K in grams()),
    "simplex_descent": lambda: (
        (K, torch.full_like(K[0], 1 / len(K)), 3, 1.0, 0.5, 0.3, 0.1, relative)
        for K in grams()
        for relative in (False, True)
    ),
    "graddrop": lambda: ((g, T, *drops(T)) for g, T, _ in row_samples()),
    "trimmed_mean": lambda: ((g, T, (T - 1) // 2) for g, T, _ in row_samples()),
    "track_gram": lambda: ((g, T, *factors(T), state_of(g, T, L)) for g, T, L in row_samples()),
    "excess": lambda: ((g, T, 1e-7, state_of(g, T, L)) for g, T, L in row_samples()),
    "normal_numbers": lambda: ((torch.tensor(5), torch.tensor(2), n) for n in (1, 2, 5)),
    "fairgrad": lambda: ((K, 2.0, p, 1.0) for K in grams() for p in (None, numbers_of(K))),
    "equiangular": lambda: ((K, int(s)) for K in grams() for s in ops.EquiangularLength),
    "aligned": lambda: (
        (K, p, int(s), s == 0)
        for K in grams()
        for s in ops.AlignedScale
        for p in (None, numbers_of(K))
    ),
}
