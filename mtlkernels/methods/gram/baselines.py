"""The baselines: weights that do not depend on the gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from mtlkernels import ops
from mtlkernels.methods.gram.base import Drawing, GramMethod
from mtlkernels.methods.numbers import Numbers, numbers_of


class Sum(GramMethod):
    r"""d = sum_t g_t: every weight 1, what `sum(losses).backward()` does, the baseline.

    .. math:: d = \sum_t g_t

    Use when:
        you need the baseline: compare every other method with it, at its own tuned learning
        rate.

    Avoid when:
        one loss has a much larger gradient than the others: it then decides the direction
        alone.
    """

    paper = "baseline"

    def forward(self, gram: Tensor, losses: Tensor | None = None) -> Tensor:
        self.status = ops.task_status(gram)
        return torch.ones_like(gram[0])


class Mean(GramMethod):
    r"""d = (1/T) sum_t g_t: the baseline with weights 1/T, also where a task's gradient is zero.

    .. math:: d = \frac{1}{T} \sum_t g_t

    Use when:
        you want `Sum` at a learning rate that does not depend on the number of tasks.

    Avoid when:
        as for `Sum`.
    """

    paper = "baseline"

    def forward(self, gram: Tensor, losses: Tensor | None = None) -> Tensor:
        self.status = ops.task_status(gram)
        return torch.full_like(gram[0], 1 / len(gram))


class FixedWeights(GramMethod):
    r"""The gradients with given weights, d = sum_t w_t g_t, also where a gradient is zero.

    .. math:: d = \sum_t w_t g_t

    A task keeps its weight in a step without the other tasks, even if it is the only one.

    Args:
        weights: one finite number per task, in the order of the losses or by name, `{"seg": 1,
            "depth": 10}`. Numbers without names belong to the names of the first step, in order.

    A baseline, from no paper.

    Use when:
        you know the weights, for example from a search.

    Avoid when:
        the losses change their scale during training: the weights do not follow.
    """

    paper = "baseline"
    keeps = "its tasks' names"
    alone_is_plain = False

    weights: Tensor

    def __init__(self, weights: Numbers) -> None:
        super().__init__()
        given, names = numbers_of(weights)
        if given.dim() != 1 or not len(given) or not given.isfinite().all():
            raise ValueError(f"weights={weights}: give one finite number per task")
        self.register_given("weights", given, names)

    def forward(self, gram: Tensor, losses: Tensor | None = None) -> Tensor:
        if len(self.weights) != len(gram):
            raise ValueError(f"there are {len(self.weights)} weights for {len(gram)} tasks")
        if self.weights.device != gram.device:
            self.to(gram.device)
        self.status = ops.task_status(gram)
        return self.weights.clone()

    def extra_repr(self) -> str:
        return f"weights={self.weights.tolist()}"


class RandomWeights(Drawing):
    r"""Random loss weighting, RLW (Lin et al., arXiv 2111.10603): w = softmax(z), z ~ N(0, I).

    .. math:: w = \operatorname{softmax}(z), \quad z \sim \mathcal N(0, I)

    Drawn anew in every step; the weights sum to 1, as in the paper, LibMTL and nash-mtl (IGB4MTL
    multiplies by T). They do not depend on the gradients; a zero gradient counts too.

    Args:
        seed: the seed of the draws, which depend only on it and on the number of calls; both are in
            `state_dict`.

    Use when:
        you want a sanity check that any other method should beat.

    Avoid when:
        one backward pass is all you can afford: `RLW` is the same rule on losses.
    """

    paper = "arXiv 2111.10603"
    keeps = "a seed and a count"

    def __init__(self, *, seed: int = 0) -> None:
        super().__init__(seed)

    def forward(self, gram: Tensor, losses: Tensor | None = None) -> Tensor:
        self.status = ops.task_status(gram)
        return self._draw_normal(gram).softmax(dim=0)
