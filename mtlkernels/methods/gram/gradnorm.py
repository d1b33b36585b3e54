"""GradNorm: learn weights that make the tasks train at similar rates."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from mtlkernels import ops
from mtlkernels.methods.gram.base import SizedByTasks


class GradNorm(SizedByTasks):
    r"""Gradient normalisation (Chen et al., arXiv 1711.02257).

    .. math::
        w_i \leftarrow w_i - \eta \, \frac{n_i}{m} \operatorname{sign}\bigl(w_i n_i - m
        r_i^{\alpha}\bigr), \qquad n_i = \lVert g_i \rVert, \; m = \frac{1}{T} \sum_i w_i n_i

    With n_i = ||g_i||, m the mean of the w_i n_i, and r_i = L_i / L_i(0) over its mean, each step
    takes w_i <- w_i - lr (n_i / m) sign(w_i n_i - m r_i^alpha), the subgradient of sum_i |w_i n_i -
    m r_i^alpha| / m with the target held fixed; then the w_i sum to T again. A step's direction
    uses the weights from before its update; they start at 1. The T norms are enough: there is no
    second backward pass. Homogeneous of degree 1 in the gradients.

    Losses must be positive and finite; the status of any other one is INVALID_LOSS. A loss <= 0 has
    no ratio: its weight does not change, and the others change as without it. A loss or gradient
    that is not finite leaves all weights unchanged. L_i(0) is the first valid loss. A zero gradient
    gets weight 0 and does not count; the others' weights sum to their number. The state, `weights`
    and `start` (T), is in `state_dict`.

    Args:
        alpha: at least 0, the strength of the pull towards equal rates. 1.5 is the paper's on NYUv2
            and LibMTL's; SamsungLabs' default is 2.
        lr: the step of the weights, positive.

    The paper leaves the loss in the gradients' own units and its step to the main optimizer; here m
    divides it and a weight stops at 0, so that neither the gradients' scale nor a long step can
    turn a sign. LibMTL writes w = T softmax(s), measures on all shared parameters and takes L(0)
    from the first epoch.

    Use when:
        all tasks should train at one rate, measured by their losses.

    Avoid when:
        losses can be 0 or negative, or you do not want to tune `alpha` and `lr`: `NTKMTL` needs
        neither.
    """

    paper = "arXiv 1711.02257"
    keeps = "a weight and a first loss per task"

    weights: Tensor
    start: Tensor
    _sized: ClassVar = {"weights": ("count", 1.0), "start": ("own", math.nan)}

    def __init__(self, alpha: float = 1.5, lr: float = 0.025) -> None:
        super().__init__()
        if not (math.isfinite(alpha) and alpha >= 0):
            raise ValueError(f"alpha={alpha}: it must be finite and at least 0")
        if not (math.isfinite(lr) and lr > 0):
            raise ValueError(f"lr={lr}: it must be finite and positive")
        self.alpha = float(alpha)
        self.lr = float(lr)

    def forward(self, gram: Tensor, losses: Tensor | None = None) -> Tensor:
        if losses is None:
            raise ValueError("GradNorm needs the tasks' losses: pass losses= to aggregate")
        if self._first_call(gram):
            self.weights = torch.ones_like(gram[0])
            self.start = torch.full_like(gram[0], torch.nan)
        losses = losses.detach().to(gram)
        weights, self.status, following, self.start = self._step(gram, losses, self.start)
        out = (losses <= 0) & losses.isfinite()
        self.weights = torch.where(out.any(), self._without(out, gram, losses), following)
        return weights

    def _step(
        self, gram: Tensor, losses: Tensor, start: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return ops.gradnorm(gram, losses, self.weights, start, self.alpha, self.lr)

    def _without(self, out: Tensor, gram: Tensor, losses: Tensor) -> Tensor:
        """(T) the next weights where some tasks take no part in the step: theirs stay."""
        shown = torch.where(out | out[:, None], 0.0, gram)
        known = torch.where(out, 1.0, losses)
        _, _, moved, _ = self._step(shown, known, torch.where(out, 1.0, self.start))
        kept = torch.where(out, self.weights, 0.0)
        moved = torch.where(out, 0.0, moved)
        share = (len(gram) - kept.sum()) / moved.sum()
        return torch.where(share.isfinite() & (share > 0), kept + moved * share, self.weights)

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}, lr={self.lr}"
