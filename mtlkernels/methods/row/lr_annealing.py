"""LRAnnealing: losses weighted so that their gradients have the mean size of a reference's."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mtlkernels import ops
from mtlkernels.methods.row.base import RowMethod, RowStep


class LRAnnealing(RowMethod):
    r"""Learning rate annealing of physics-informed networks (Wang et al., arXiv 2001.04536).

    .. math::
        \lambda_i \leftarrow (1 - \alpha) \lambda_i + \alpha \frac{\operatorname{mean} |g_r|}
        {\operatorname{mean} |g_i|}, \qquad d = \sum_i \lambda_i g_i, \quad r \text{ the reference}

    The means of absolute values are over the elements of the parameters that a task reaches. The
    weights start at 1, and a step uses those that it has just moved. This is PhysicsNeMo's form;
    the paper has max |g_r| in the numerator. It adds 1e-8 to the denominator, here there is no
    epsilon: a gradient that is zero leaves its weight, and one of the reference leaves all. One
    that is not finite makes all weights NaN and moves none. Homogeneous of degree 1.

    Args:
        alpha: in 0 .. 1; 0.01, PhysicsNeMo's.
        ref_key: the reference, by its name or its position; the first task by default, as there.

    PhysicsNeMo's update_freq, 1 by default, is left out: each step here has all task gradients
    anyway. The state, `weights` (T), is in `state_dict`. A step without the reference uses the
    weights as they are. There is no Gram matrix; `AvgNorm("mean", ema=0.9)` is the rule with
    Euclidean norms and every loss its own reference, and has one.

    Use when:
        you come from a physics-informed network's code that has this rule.

    Avoid when:
        the reference's gradient is nearly zero at times: all others are then shortened to it.
    """

    paper = "arXiv 2001.04536"
    keeps = "a weight per task"
    weighs = True

    weights: Tensor

    def __init__(self, alpha: float = 0.01, *, ref_key: int | str = 0) -> None:
        super().__init__()
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha={alpha}: it must lie in 0 .. 1")
        if not isinstance(ref_key, str) and ref_key < 0:
            raise ValueError(f"ref_key={ref_key}: give a name, or a position from 0 on")
        self.alpha = float(alpha)
        self.ref_key = ref_key
        self.register_lazy("weights", fill=1.0)

    def forward(
        self,
        lists: Sequence[Sequence[Tensor]],
        num_tasks: int,
        losses: Tensor | None = None,
    ) -> RowStep:
        means = mean_sizes(lists, num_tasks)
        if len(self.weights) not in (0, num_tasks):
            raise ValueError(
                f"the state of LRAnnealing is for {len(self.weights)} tasks, not {num_tasks}: use "
                "a new method for another set of tasks"
            )
        before = self.weights.to(means) if len(self.weights) else torch.ones_like(means)
        place = self.place_of(self.ref_key, num_tasks, "ref_key")
        now = before
        if place is not None:
            ratio = means[place] / means
            moves = (means > 0) & (means[place] > 0) & means.isfinite().all()
            now = torch.where(moves, before.lerp(ratio, self.alpha), before)
        self.weights = now
        spoilt = torch.where(means.isfinite().all(), 0.0, torch.nan)
        weights = torch.where(means == 0, 0.0, now) + spoilt
        return RowStep(
            [ops.combine(grads, weights.to(grads[0].device)) for grads in lists], weights
        )

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}, ref_key={self.ref_key!r}"


def mean_sizes(lists: Sequence[Sequence[Tensor]], num_tasks: int) -> Tensor:
    """(T) float64: the mean absolute value of each task's gradient over what it reaches; or 0."""
    device = lists[0][0].device
    means = []
    for t in range(num_tasks):
        total, count = torch.zeros((), dtype=torch.float64, device=device), 0
        for grads in lists:
            own = len(grads) // num_tasks
            for grad in grads[t * own : (t + 1) * own]:
                total = total + grad.abs().sum(dtype=torch.float64).to(device)
                count += grad.numel()
        means.append(total / max(count, 1))
    return torch.stack(means)
