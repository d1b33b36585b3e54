"""GradVac: turn each gradient towards those it agrees with less than usual."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from mtlkernels import ops
from mtlkernels.methods.gram.base import Drawing, SizedByTasks


class GradVac(Drawing, SizedByTasks):
    r"""Gradient vaccine (Wang et al., arXiv 2010.05874); `PerPart` keeps targets a layer.

    .. math::
        v_i \leftarrow v_i + \frac{\lVert v_i \rVert}{\lVert g_j \rVert} \, \frac{q \sqrt{1 -
        p^2} - p \sqrt{1 - q^2}}{\sqrt{1 - q^2}} \, g_j \;\text{ where } p = \cos(v_i, g_j) <
        q = \phi_{ij}

    Task i starts from v = g_i and visits the other tasks j in random order. With p = cos(v, g_j)
    and its target q = phi_ij, where p < q: v <- v + (||v|| / ||g_j||) (q sqrt(1 - p^2) - p sqrt(1 -
    q^2)) / sqrt(1 - q^2) g_j, which makes the cosine q; then phi_ij <- (1 - beta) phi_ij + beta p.
    The direction is the sum of the v_i. Computed from K alone, O(T^3). phi starts at 0, where the
    rule is PCGrad's. Homogeneous of degree 1 in the gradients.

    Args:
        beta: in 0 .. 1. The paper uses 1e-2; LibMTL, torchjd and SamsungLabs default to 0.5.
        update: "every" moves the target of every pair visited, as the paper, LibMTL and torchjd do;
            "corrected" that of corrected pairs only, as SamsungLabs does.
        seed: of the visiting orders, as in PCGrad.

    Without an epsilon: cosines are clamped to -1 .. 1 and targets to 1 - 1e-6; a zero gradient
    takes no part; a v that has become zero has no cosine and does not change, and neither do the
    targets in a step with a gradient that is not finite. The targets `phi` (T, T) are in
    `state_dict`.

    Use when:
        many related tasks (languages, for example) should have gradients as similar as they
        usually are.

    Avoid when:
        the tasks are unrelated: the targets then stay near 0, where the rule is `PCGrad`.
    """

    paper = "arXiv 2010.05874"
    keeps = "a target per pair, a seed, a count"

    phi: Tensor
    _sized: ClassVar = {"phi": ("own", 0.0)}

    def __init__(
        self,
        beta: float = 1e-2,
        *,
        update: Literal["every", "corrected"] = "every",
        seed: int = 0,
    ) -> None:
        super().__init__(seed)
        if not 0 <= beta <= 1:
            raise ValueError(f"beta={beta}: it must be in 0 .. 1")
        if update not in ("every", "corrected"):
            raise ValueError(f'update={update!r}: choose "every" or "corrected"')
        self.beta = float(beta)
        self.update = update

    def forward(
        self, gram: Tensor, losses: Tensor | None = None, order: Tensor | None = None
    ) -> Tensor:
        """Weights for one step; the targets move.

        Args:
            gram: (T, T) float64.
            losses: not used.
            order: (T, T-1) int64, row i the other tasks as task i visits them; drawn where None.

        Raises:
            ValueError: the targets are those of another number of tasks.
        """
        if self._first_call(gram):
            self.phi = torch.zeros_like(gram)
        if order is None:
            order = self._draw_order(gram)
        weights, self.status, self.phi = ops.gradvac(
            gram, order, self.phi, self.beta, self.update == "corrected"
        )
        return weights

    def extra_repr(self) -> str:
        return f"beta={self.beta}, update={self.update!r}"
