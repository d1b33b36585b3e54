"""Weights that do not look at the gradients: the baselines."""

from __future__ import annotations

import torch
from torch import Tensor

from mtlkernels import ops
from mtlkernels.methods.base import GramMethod


class Sum(GramMethod):
    """d = sum_t g_t: every weight 1, what `sum(losses).backward()` does, the baseline."""

    paper = "baseline"

    def forward(self, gram: Tensor, losses: Tensor | None = None) -> Tensor:
        self.status = ops.task_status(gram)
        return torch.ones_like(gram[0])


class Mean(GramMethod):
    """d = (1/T) sum_t g_t: the baseline with weights 1/T, also where a task's gradient is zero."""

    paper = "baseline"

    def forward(self, gram: Tensor, losses: Tensor | None = None) -> Tensor:
        self.status = ops.task_status(gram)
        return torch.full_like(gram[0], 1 / len(gram))
