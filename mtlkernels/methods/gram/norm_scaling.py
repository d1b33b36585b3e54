"""The relatives of AvgNorm that other papers name: every task's gradient at one length."""

from __future__ import annotations

import torch
from torch import Tensor

from mtlkernels import ops
from mtlkernels.methods.gram.base import GramMethod


class _NormScaling(GramMethod):
    _scale: ops.NormScale

    def forward(self, gram: Tensor, losses: Tensor | None = None) -> Tensor:
        weights, self.status = ops.avgnorm(gram, int(self._scale))
        return weights


class NTKMTL(_NormScaling):
    r"""NTKMTL (NeurIPS 2025) with one sample a task: w_i = rms(n) / n_i, n_i = ||g_i||.

    .. math::
        d = \sum_i w_i g_i, \qquad w_i = \frac{1}{\lVert g_i \rVert} \sqrt{\frac{1}{T} \sum_j
        \lVert g_j \rVert^2}

    The paper's w_i = sqrt(mean_j lambda_j / lambda_i) has lambda_i, the largest eigenvalue of the
    Gram matrix of n mini-batch chunks of task i; for n = 1 it is ||g_i||^2, and the rule is
    `AvgNorm("rms")`. A zero gradient gets weight 0 and does not count. Homogeneous of degree 1 in
    the gradients.

    Use when:
        you have no reason for another method: it is the default that these pages recommend. It
        has nothing to tune, and its length never vanishes.

    Avoid when:
        a task's gradient is mostly noise, or one task should matter more: use
        `Preferred(NTKMTL(), p)`.
    """

    paper = "NeurIPS 2025"

    _scale = ops.NormScale.RMS


class SLW(_NormScaling):
    r"""Scaled loss weighting by exact norms, inside SLAW (arXiv 2109.08218).

    .. math:: w_i = T \, \frac{1 / \lVert g_i \rVert}{\sum_j 1 / \lVert g_j \rVert}

    w_i = T (1 / n_i) / sum_j 1 / n_j, n_i = ||g_i||: the harmonic mean of the norms over n_i; the
    weights sum to T. A zero gradient gets weight 0 and does not count; the original clamps norms at
    1e-5, which gives a zero gradient nearly all the weight. The original measures the norms on the
    last shared layer. Homogeneous of degree 1 in the gradients.

    Use when:
        the weights must sum to the number of tasks.

    Avoid when:
        some gradients are very short: the harmonic mean makes the whole direction short; take
        `NTKMTL`.
    """

    paper = "arXiv 2109.08218"

    _scale = ops.NormScale.HARMONIC


class NGDiff(GramMethod):
    r"""Normalised gradient difference for unlearning (arXiv 2410.22086).

    .. math:: d = \frac{g_1}{\lVert g_1 \rVert} - \frac{g_2}{\lVert g_2 \rVert}

    Two tasks, retain then forget: d = g_1 / ||g_1|| - g_2 / ||g_2||, so descent along d unlearns
    the second. The first step's names are these two, in that order; a step that lacks one of them
    raises ValueError. Identical gradients give 0; a zero gradient gets weight 0. Homogeneous of
    degree 0 in the gradients: the learning rate sets the length (in the paper, automatically).

    Use when:
        a model should forget the second task and retain the first (unlearning).

    Avoid when:
        you train two tasks: the second loss grows.
    """

    paper = "arXiv 2410.22086"
    keeps = "its tasks' names"
    alone_is_plain = False

    sign: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer(
            "sign", torch.tensor([1.0, -1.0], dtype=torch.float64), persistent=False
        )

    def forward(self, gram: Tensor, losses: Tensor | None = None) -> Tensor:
        if len(gram) != 2:
            raise ValueError(
                f"NGDiff takes two losses, retain and forget, and got {len(gram)} tasks"
            )
        if self.sign.device != gram.device:
            self.to(gram.device)
        weights, self.status = ops.avgnorm(gram, int(ops.NormScale.CONSTANT), 1.0)
        return weights * self.sign
