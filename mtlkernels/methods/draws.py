"""Random numbers of a method: a function of its seed and of the number of its draws alone."""

from __future__ import annotations

import torch
from torch import Tensor

from mtlkernels import ops
from mtlkernels.methods.base import GramMethod


class Drawing(GramMethod):
    """A Gram method that draws: the same on every device and rank; both buffers are its state."""

    seed: Tensor
    step: Tensor

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.register_buffer("seed", torch.tensor(seed, dtype=torch.int64))
        self.register_buffer("step", torch.tensor(0, dtype=torch.int64))

    def _draw_order(self, gram: Tensor) -> Tensor:
        """The next visiting order, (T, T-1)."""
        self._follow(gram)
        order = ops.visiting_order(self.seed, self.step, len(gram))
        self.step.add_(1)
        return order

    def _draw_normal(self, gram: Tensor) -> Tensor:
        """The next T standard normal numbers."""
        self._follow(gram)
        numbers = ops.normal_numbers(self.seed, self.step, len(gram))
        self.step.add_(1)
        return numbers

    def _follow(self, gram: Tensor) -> None:
        if self.step.device != gram.device:
            self.to(gram.device)
