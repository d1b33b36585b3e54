"""AvgNorm: every task's gradient at the same length."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from mtlkernels import ops
from mtlkernels.methods.gram.base import GramMethod


class AvgNorm(GramMethod):
    r"""Loss scaling by gradient norms (Guo et al., arXiv 2509.23915): w_i = S / ||g_i||.

    .. math:: d = S \sum_i \frac{g_i}{\lVert g_i \rVert}

    Each task adds a gradient of length S to the direction; there is no solver and no state. A task
    whose gradient is zero gets weight 0 and does not count in S. Degree 1 in the gradients, 0 for a
    constant S.

    Args:
        scale: S. "sum", the norm of the summed gradients, is the paper's rule as far as it is
            known; it vanishes where the gradients cancel, and if it is below the rounding noise of
            K the status is ILL_CONDITIONED. "max", "mean", "rms", "median" (of an even number the
            mean of the middle two), "min" and "harmonic" (the harmonic mean) are statistics of the
            norms: "rms" is NTKMTL with one sample a task, "max" is DB-MTL without its average and
            logarithm, "harmonic" is SLW. A positive number is S itself.

        ema: in [0, 1), the share of an average of the weights that a step keeps; 0 uses the weights
            of each step. `AvgNorm("mean", ema=0.9)` with `every=1000` of the optimizer is jaxpi's
            "grad_norm" weighting of physics-informed networks. Its average starts at given weights
            (here at those of the first step; use `CRMOGM(AvgNorm("mean"), 0.9, initial_weights)`
            for given ones), and it adds 1e-5 of the mean norm to each norm. The average is state.

    A constant S fixes the direction's length whatever the scale of the losses is. The paper scales
    the losses, so that heads are weighted too: pass `weight_heads=True` to `backward` or
    `MTLOptimizer`. It measures the norms on the last layer of the shared backbone (`measure=`);
    here they are those of the given Gram matrix, by default over all shared parameters.

    Use when:
        the losses have different units or scales and there is no time for a search over
        weights; take `"rms"` or `"max"` where gradients conflict.

    Avoid when:
        a task's gradient is mostly noise: it gets the same length as the others. With
        `scale="sum"` the direction vanishes where gradients cancel.
    """

    paper = "arXiv 2509.23915"

    average: Tensor

    def __init__(
        self,
        scale: Literal["sum", "max", "mean", "rms", "median", "min", "harmonic"] | float = "sum",
        ema: float = 0.0,
    ) -> None:
        super().__init__()
        if not 0 <= ema < 1:
            raise ValueError(f"ema={ema}: it must lie in 0 .. 1, below 1")
        self.ema = float(ema)
        if ema:
            self.register_lazy("average", fill=math.nan)
        if isinstance(scale, str):
            names = [s.name.lower() for s in ops.NormScale if s != ops.NormScale.CONSTANT]
            if scale not in names:
                raise ValueError(
                    f"scale={scale!r}: choose {', '.join(names)}, or a positive number"
                )
            self._scale, self._constant = ops.NormScale[scale.upper()], 1.0
        elif math.isfinite(scale) and scale > 0:
            self._scale, self._constant = ops.NormScale.CONSTANT, float(scale)
        else:
            raise ValueError(f"scale={scale}: a constant must be finite and positive")
        self.scale = scale

    def forward(self, gram: Tensor, losses: Tensor | None = None) -> Tensor:
        weights, self.status = ops.avgnorm(gram, int(self._scale), self._constant)
        return self._averaged(weights) if self.ema else weights

    def _averaged(self, weights: Tensor) -> Tensor:
        """The average moves where a task has a gradient and all weights are finite."""
        before = self.average
        if len(before) not in (0, len(weights)):
            raise ValueError(
                f"the state of AvgNorm is for {len(before)} tasks, not {len(weights)}: use a new "
                "method for another set of tasks"
            )
        before = before.to(weights.device) if len(before) else torch.full_like(weights, torch.nan)
        moved = torch.where(before.isnan(), weights, weights.lerp(before, self.ema))
        moves = weights.isfinite().all() & (weights != 0)
        self.average = torch.where(moves, moved, before)
        return torch.where(moves, moved, weights)

    def extra_repr(self) -> str:
        return f"scale={self.scale!r}" + (f", ema={self.ema}" if self.ema else "")
