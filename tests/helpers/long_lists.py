"""Lists of hundreds of tensors: no table of pointers that a launch takes holds all of them."""

from __future__ import annotations

import torch
from inputs import check_combine, check_gram, sample_weights
from torch import Tensor

from mtlkernels import ops, reference

COUNTS = [500, 2500]
TASKS = [*range(1, 10), 20]


def long_list(count: int, T: int, dtype: torch.dtype) -> list[Tensor]:
    """T * count gradients of 0 to 40 elements, some of 5000; some absent from some tasks."""
    generator = torch.Generator().manual_seed(100 * count + T)
    sizes = [5000 if p % 499 == 7 else p * 7 % 41 for p in range(count)]
    flat = torch.randn(T, sum(sizes), generator=generator).to(dtype)
    return [
        grad.clone() if (t + p) % 5 or T == 1 else grad.new_empty(0)
        for t, row in enumerate(flat)
        for p, grad in enumerate(row.split(sizes))
    ]


def check_long_list(count: int, T: int, dtype: torch.dtype, device: str) -> None:
    """Asserts that gram, combine, GradDrop and the trimmed mean are right for one such list."""
    host = long_list(count, T, dtype)
    grads, weights = [grad.to(device) for grad in host], sample_weights(T)
    check_gram(ops.gram(grads, T).cpu(), host, T)
    check_combine(ops.combine(grads, weights.to(device)).cpu(), host, weights)
    numbers = (torch.tensor(3), torch.tensor(5), torch.full((T,), 0.25, dtype=torch.float64))
    found = ops.graddrop(grads, T, *(x.to(device) for x in numbers)).cpu()
    torch.testing.assert_close(found, reference.graddrop(host, T, *numbers))
    trim = (T - 1) // 2
    expected = reference.trimmed_mean(host, T, trim)
    torch.testing.assert_close(ops.trimmed_mean(grads, T, trim).cpu(), expected)
