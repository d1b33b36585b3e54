"""Weights that float32 cannot hold, and gradients that make their product an ordinary number."""

from __future__ import annotations

import torch
from torch import Tensor

# (weight, size of the gradient): both of float64 and float32 range, as far as the dtype has it.
PAIRS = {
    torch.float32: [(1e39, 1e-40), (1e-50, 1e30), (-3e38, 1e-38), (1e300, 0.0)],
    torch.float64: [(1e39, 1e-40), (1e-50, 1e30), (-1e200, 1e-200), (1e300, 0.0)],
    torch.bfloat16: [(1e39, 1e-39), (1e-50, 1e30), (-3e38, 1e-38), (1e300, 0.0)],
    torch.float16: [(1e39, 0.0), (1e-50, 1e4), (-1e35, 0.0), (1e300, 0.0)],
}


def hostile(dtype: torch.dtype, T: int) -> tuple[list[Tensor], Tensor]:
    """Two parameters; hostile tasks in turn with ordinary ones, the first and the last hostile."""
    grads, weights = [], torch.randn(T, dtype=torch.float64)
    for t in range(T):
        size = 1.0
        if t % 2 == 0 or t == T - 1:
            weights[t], size = PAIRS[dtype][t // 2 % 4]
        grads += [(size * torch.randn(n, dtype=torch.float64)).to(dtype) for n in (1030, 3)]
    return grads, weights
