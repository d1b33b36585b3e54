"""A method for each part of the parameters, on the part's own Gram matrix."""

from __future__ import annotations

from copy import deepcopy
from typing import cast

import torch
from torch import Tensor, nn

from mtlkernels.methods.gram.base import GramMethod

_ZERO_GRADIENT = 2  # of mtlkernels.Status


class PerPart(GramMethod):
    r"""Any Gram method, applied to each layer (or other part) with its own copy of the method.

    .. math:: d^{(b)} = \sum_t w_t\bigl(K^{(b)}\bigr) \, g_t^{(b)} \;\text{ for each part } b

    `aggregate(..., parts=...)`, `backward(..., parts=...)` and `MTLOptimizer(..., parts=...)` pass
    it the parts' Gram matrices and combine each part with its own weights. GradVac (arXiv
    2010.05874) keeps its targets for the whole model, for every layer or for every matrix, LibMTL's
    groups 0, 1 and 2: that is `GradVac()`, and `PerPart(GradVac(), ...)` with such parts.

    A part's direction is the method's on that part alone: what a method guarantees (no conflict, a
    length) holds in each part. Copies draw the same random numbers.

    Args:
        method: any Gram method; it is copied.
        num_parts: how many parts there are.

    A baseline, from no paper of its own.

    Use when:
        layers conflict in different ways.

    Avoid when:
        what the method promises must hold for the whole gradient: it holds in each part only.
    """

    paper = "baseline"
    keeps = "a method per part"
    takes_parts = True

    def __init__(self, method: GramMethod, num_parts: int) -> None:
        super().__init__()
        if not isinstance(method, GramMethod):
            raise ValueError(
                f"method is a {type(method).__name__}, not a Gram method: give one, "
                "for example PCGrad()"
            )
        if not (isinstance(num_parts, int) and num_parts >= 1):
            raise ValueError(f"num_parts={num_parts}: it must be a whole number, at least 1")
        self.methods = nn.ModuleList(deepcopy(method) for _ in range(num_parts))

    def forward(self, gram: Tensor, losses: Tensor | None = None) -> Tensor:
        """Weights for one step.

        Args:
            gram: (B, T, T) float64, a Gram matrix a part; (T, T) counts as one part.
            losses: (T), for the methods that use them.

        Returns:
            (B, T) float64, or (T) for (T, T). The status (T) holds what any part's says, but
            ZERO_GRADIENT only where a gradient is zero in every part.

        Raises:
            ValueError: there are not `num_parts` parts.
        """
        grams = gram if gram.dim() == 3 else gram[None]
        if len(grams) != len(self.methods):
            raise ValueError(
                f"this PerPart was made for {len(self.methods)} parts and got {len(grams)}: "
                f"make it with num_parts={len(grams)}"
            )
        pairs = zip(self.methods, grams.unbind(), strict=True)
        weights = torch.stack([method(part, losses) for method, part in pairs])
        told = torch.stack([cast(GramMethod, method).status for method in self.methods])
        absent = (told & _ZERO_GRADIENT).amin(dim=0)
        self.status = absent
        for row in told.unbind():
            self.status = self.status | (row & ~_ZERO_GRADIENT)
        return weights if gram.dim() == 3 else weights[0]
