"""A method for each part of the parameters, on the part's own Gram matrix."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any, cast

import torch
from torch import Tensor, nn

from mtlkernels.methods.gram.base import GramMethod
from mtlkernels.methods.numbers import decoded, encoded

_ZERO_GRADIENT = 2  # of mtlkernels.Status
_PARTS = "num_parts"  # the entry of a state dict


class PerPart(GramMethod):
    r"""Any Gram method, applied to each layer (or other part) with its own copy of the method.

    .. math:: d^{(b)} = \sum_t w_t\bigl(K^{(b)}\bigr) \, g_t^{(b)} \;\text{ for each part } b

    `aggregate(..., parts=...)`, `backward(..., parts=...)` and `MTLOptimizer(..., parts=...)` pass
    it the parts' Gram matrices and combine each part with its own weights. GradVac (arXiv
    2010.05874) keeps its targets for the whole model, for every layer or for every matrix, LibMTL's
    groups 0, 1 and 2: that is `GradVac()`, and `PerPart(GradVac())` with such parts.

    A part's direction is the method's on that part alone: what a method guarantees (no conflict, a
    length) holds in each part. Copies draw the same random numbers.

    Args:
        method: any Gram method; it is copied once for each part. The number of parts is that of
            the first step or of a loaded state, and does not change after it.

    A baseline, from no paper of its own.

    Use when:
        layers conflict in different ways.

    Avoid when:
        what the method promises must hold for the whole gradient: it holds in each part only.
    """

    paper = "baseline"
    keeps = "a method per part"
    takes_parts = True

    def __init__(self, method: GramMethod) -> None:
        super().__init__()
        if not isinstance(method, GramMethod) or method.takes_parts:
            raise ValueError(
                f"method is a {type(method).__name__}, not a Gram method of one Gram "
                "matrix: give one, for example PCGrad()"
            )
        self.methods = nn.ModuleList([deepcopy(method)])
        self.num_parts: int | None = None  # not known before the first step

    def for_parts(self, num_parts: int) -> None:
        """Copies the method for each part, before the first step; later calls check the number.

        Raises:
            ValueError: earlier steps, or a loaded state, had another number of parts.
        """
        if self.num_parts is None:
            self.methods.extend(deepcopy(self.methods[0]) for _ in range(num_parts - 1))
            self.num_parts = num_parts
        if self.num_parts != num_parts:
            raise ValueError(
                f"this PerPart has the state of {self.num_parts} parts and got {num_parts}: give "
                "parts= as many, or use a new PerPart(method)"
            )

    def forward(self, gram: Tensor, losses: Tensor | None = None) -> Tensor:
        """Weights for one step.

        Args:
            gram: (B, T, T) float64, a Gram matrix a part; (T, T) counts as one part.
            losses: (T), for the methods that use them.

        Returns:
            (B, T) float64, or (T) for (T, T). The status (T) holds what any part's says, but
            ZERO_GRADIENT only where a gradient is zero in every part.

        Raises:
            ValueError: earlier steps had another number of parts.
        """
        grams = gram if gram.dim() == 3 else gram[None]
        self.for_parts(len(grams))
        pairs = zip(self.methods, grams.unbind(), strict=True)
        weights = torch.stack([method(part, losses) for method, part in pairs])
        told = torch.stack([cast(GramMethod, method).status for method in self.methods])
        absent = (told & _ZERO_GRADIENT).amin(dim=0)
        self.status = absent
        for row in told.unbind():
            self.status = self.status | (row & ~_ZERO_GRADIENT)
        return weights if gram.dim() == 3 else weights[0]

    def check_state(self, state_dict: Mapping[str, Any]) -> None:
        """Raises ValueError if a saved state has other tasks, or another number of parts."""
        for saved in decoded(state_dict.get(_PARTS)):
            if self.num_parts not in (None, saved):
                raise ValueError(
                    f"the state was saved for {saved} parts, and this PerPart has "
                    f"{self.num_parts}: give parts= as many. Nothing was loaded"
                )
        super().check_state(state_dict)

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.num_parts is not None and self.methods.state_dict():
            destination[prefix + _PARTS] = encoded([self.num_parts], torch.device("cpu"))

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Copies the method for each part of the state, before the copies load theirs."""
        own = dict(state_dict)
        for saved in decoded(own.pop(prefix + _PARTS, None)):
            self.for_parts(saved)
        super()._load_from_state_dict(own, prefix, *args, **kwargs)

    def _reset(self) -> None:
        super()._reset()
        self.methods, self.num_parts = nn.ModuleList([self.methods[0]]), None
