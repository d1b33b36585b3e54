"""What a Gram method is: T gradients' inner products in, T weights out."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn


class GramMethod(nn.Module, ABC):
    """A rule that turns the Gram matrix of T gradients into T weights; d = sum_t w_t g_t.

    Buffers are its state, so `state_dict` and `.to` cover it. A method of one's own only has to
    define `forward`; where it leaves `status` alone, the report says what K says.

    Attributes:
        status: (T) int64 flags of `mtlkernels.Status` for the last call; empty before the first.
    """

    status: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("status", torch.empty(0, dtype=torch.int64), persistent=False)

    @abstractmethod
    def forward(self, gram: Tensor, losses: Tensor | None = None) -> Tensor:
        """Weights for one step.

        Args:
            gram: (T, T) float64, K_ij = <g_i, g_j>.
            losses: (T) the tasks' losses, for the methods that use them.

        Returns:
            (T) float64 on gram's device.
        """
