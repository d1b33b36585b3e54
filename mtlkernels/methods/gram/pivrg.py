"""PIVRG: FairGrad that favours the tasks that have lost most."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mtlkernels import ops
from mtlkernels.methods.gram.base import GramMethod
from mtlkernels.methods.numbers import Numbers, numbers_of


class PIVRG(GramMethod):
    r"""Performance-informed variance reduction of gradients (CVPR 2025).

    .. math::
        w > 0 \;\text{ with }\; (K w)_i = \Bigl(\frac{p_i}{w_i}\Bigr)^{1/2}, \qquad p = T
        \operatorname{softmax}\Bigl(\frac{\text{drop}}{\text{temp}}\Bigr)

    w > 0 with (K w)_i = (p_i / w_i)^(1/2): FairGrad with alpha = 2 and the importance
    p = T softmax(drop / temp), temp = max((max drop - min drop) / log(bound), min_temp), where
    drop_i is how much task i has lost against its single-task model. `update` sets the drops,
    usually once an epoch; before that p = 1. Degree -1/3 in the gradients. Solved exactly, and with
    NashMTL's answers where there is no solution or K's rounding hides it.

    Args:
        bound: the largest ratio between two entries of p; above 1. The published code (MTLlib) has
            2 for NYUv2 and CelebA, 1.8 for Cityscapes and QM9.
        min_temp: the lowest temperature, in the drops' unit (percent); above 0. Published: 10 for
            NYUv2 and CelebA, 20 for Cityscapes, 100 for QM9.

    p is kept in the buffer `importance` and thus in `state_dict`; it is empty before `update`.

    Use when:
        results of single-task models are at hand to balance towards.

    Avoid when:
        they are not: without `update` it is `FairGrad(2)`.
    """

    paper = "CVPR 2025"
    keeps = "an importance per task"

    importance: Tensor

    def __init__(self, bound: float = 2.0, min_temp: float = 10.0) -> None:
        super().__init__()
        if not (math.isfinite(bound) and bound > 1):
            raise ValueError(f"bound={bound}: it must be finite and above 1")
        if not (math.isfinite(min_temp) and min_temp > 0):
            raise ValueError(f"min_temp={min_temp}: it must be finite and positive")
        self.bound = float(bound)
        self.min_temp = float(min_temp)
        self.register_lazy("importance", "count")

    def update(self, degradations: Numbers) -> None:
        """Sets p from how much each task has lost against its single-task model.

        Args:
            degradations: (T) finite, in order or by name; larger is worse, in percent where
                `min_temp` is.
        """
        drop, names = numbers_of(degradations)
        if drop.dim() != 1 or len(drop) == 0 or not bool(drop.isfinite().all()):
            raise ValueError(f"degradations={degradations}: give one finite number per task")
        drop = self.in_own_order("degradations", drop, names).to(self.importance.device)
        temp = ((drop.max() - drop.min()) / math.log(self.bound)).clamp_min(self.min_temp)
        self.importance = len(drop) * torch.softmax(drop / temp, dim=0)

    def forward(self, gram: Tensor, losses: Tensor | None = None) -> Tensor:
        if self.importance.device != gram.device:
            self.to(gram.device)
        importance = self.importance if len(self.importance) else None
        if importance is not None and len(importance) != len(gram):
            raise ValueError(f"{len(importance)} degradations were given for {len(gram)} tasks")
        weights, self.status = ops.fairgrad(gram, 2.0, importance)
        return weights

    def extra_repr(self) -> str:
        return f"bound={self.bound}, min_temp={self.min_temp}"
