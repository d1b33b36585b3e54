"""RLW: random weights."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from mtlkernels import ops
from mtlkernels.methods.base import check_reduction
from mtlkernels.methods.loss.base import LossMethod


class RLW(LossMethod):
    r"""Random loss weighting (Lin et al., arXiv 2111.10603): w = softmax(x), x standard normal.

    .. math:: w = \operatorname{softmax}(z), \quad z \sim \mathcal N(0, I)

    Degree 1 in the losses.

    Args:
        reduction: "mean", the paper's, LibMTL's and nash-mtl's: the weights sum to 1; "sum": to T,
            as in IGB4MTL.
        seed: the seed of the draws, which depend only on it and on the number of calls and are the
            same on every device and rank; both are in `state_dict`. A call with losses that are not
            finite counts too, so that ranks stay in step.

    Use when:
        you want a sanity check that any other method should beat.

    Avoid when:
        one loss dominates the others: random weights do not correct that.
    """

    paper = "arXiv 2111.10603"
    keeps = "a seed and a count"

    seed: Tensor
    step: Tensor

    def __init__(self, reduction: Literal["mean", "sum"] = "mean", *, seed: int = 0) -> None:
        super().__init__()
        check_reduction(reduction)
        self.reduction = reduction
        self.register_buffer("seed", torch.tensor(seed, dtype=torch.int64))
        self.register_buffer("step", torch.tensor(0, dtype=torch.int64))

    def forward(self, losses: Tensor) -> Tensor:
        losses = self.admit(losses)
        weights = ops.normal_numbers(self.seed, self.step, len(losses)).softmax(dim=0)
        self.step.add_(1)
        if self.reduction == "sum":
            weights = len(losses) * weights
        return (weights * losses).sum()

    def extra_repr(self) -> str:
        return f"reduction={self.reduction!r}"
