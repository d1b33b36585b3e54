"""GradDrop: in each element, the gradients of one sign, which is drawn."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mtlkernels import ops
from mtlkernels.methods.numbers import Numbers, numbers_of
from mtlkernels.methods.row.base import RowMethod, RowStep


class GradDrop(RowMethod):
    r"""Gradient sign dropout (Chen et al., arXiv 2010.06808), on the parameters' gradients.

    .. math::
        d = \sum_t \bigl(l_t + (1 - l_t) \, k_t\bigr) g_t, \qquad k_t \in \{0, 1\} \text{ by
        element}

    In each element, with P = (1 + sum_t g_t / sum_t |g_t|) / 2 and its own uniform random U,
    positive g_t are kept if P > U and negative ones if P < U: d = sum_t (l_t + (1 - l_t) kept_t)
    g_t. In expectation over U, without leak, an element is P times its positive part plus (1 - P)
    times its negative one. T = 1, or elements in which all signs agree, keep everything; a NaN or
    an infinity reaches the direction. Homogeneous of degree 1 in the gradients.

    The paper draws where tasks meet in the representation, on gradient times activation summed over
    the batch, as LibMTL does; torchjd and the codes of CAGrad and FAMO draw on the parameters, as
    here (the last two divide by T and multiply by T again). SamsungLabs draws one number for a
    whole task, and its leak means the opposite.

    Args:
        leak: l, one number for all tasks or one per task, in order or by name, in 0 .. 1: the share
            of a gradient that is never dropped. 0 in the paper's rule and in LibMTL and torchjd;
            SamsungLabs has 0.5.
        seed: of the draws: with the step's number and the element's place it determines them, the
            same on every device. Both are in `state_dict`.

    There are no weights and no Gram matrix, so the report has neither.

    Use when:
        conflicts differ from element to element, and noise in the direction is welcome.

    Avoid when:
        you need the same direction in a repeated step, weights, or a Gram matrix in the report.
    """

    paper = "arXiv 2010.06808"
    keeps = "a seed and a count"

    leak: Tensor
    seed: Tensor
    step: Tensor

    def __init__(self, leak: float | Numbers = 0.0, *, seed: int = 0) -> None:
        super().__init__()
        given, names = numbers_of(leak)
        if given.dim() > 1 or given.numel() == 0 or not bool(((given >= 0) & (given <= 1)).all()):
            raise ValueError(f"leak={leak}: give one number in 0 .. 1, or one per task")
        self.register_given("leak", given, names)
        self.register_buffer("seed", torch.tensor(seed, dtype=torch.int64))
        self.register_buffer("step", torch.tensor(0, dtype=torch.int64))

    def forward(
        self,
        lists: Sequence[Sequence[Tensor]],
        num_tasks: int,
        losses: Tensor | None = None,
    ) -> RowStep:
        if self.leak.dim() == 1 and len(self.leak) != num_tasks:
            raise ValueError(f"leak has {len(self.leak)} numbers for {num_tasks} tasks")
        device = lists[0][0].device
        if self.step.device != device:
            self.to(device)
        leak = self.leak.expand(num_tasks).contiguous()
        directions = []
        for i, grads in enumerate(lists):
            there = grads[0].device
            step = self.step + (i << 48)  # draws of its own for each list
            directions.append(
                ops.graddrop(grads, num_tasks, self.seed.to(there), step.to(there), leak.to(there))
            )
        self.step.add_(1)
        return RowStep(directions)

    def extra_repr(self) -> str:
        return f"leak={self.leak.tolist()}"
