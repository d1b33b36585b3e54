"""SAGO: by element, the retain gradient where forgetting conflicts with it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mtlkernels import ops
from mtlkernels.methods.row.base import RowMethod, RowStep


class SAGO(RowMethod):
    r"""Sign-aligned gradient optimisation for unlearning (ACL 2026, arXiv 2604.14808).

    .. math::
        d = \begin{cases} \alpha g_R & \operatorname{sign} g_R = -\operatorname{sign} g_F \ne 0 \\
        \gamma g_F & \text{else} \end{cases} \quad \text{by element}

    Two tasks, retain then forget, both losses to be minimised. Where the two gradients have
    opposite signs, an element of d is the retain gradient's; elsewhere it is the forget gradient's.
    A zero has no sign, so it does not conflict. An absent gradient counts as zeros. A NaN or an
    infinity reaches the direction. Homogeneous of degree 1 in the gradients.

    Args:
        gamma: finite, of the forget gradient; 1.
        alpha: finite, of the retain gradient; 1.
        prefer_retain: where the signs do not conflict, gamma g_F + alpha g_R in place of gamma g_F:
            the published code's variant "sago_prefer_retain".

    The published code needs whole gradients and refuses FSDP; so does this class with DTensors. The
    values 1 and 1 are ours. There are no weights and no Gram matrix, so the report has neither.

    Use when:
        a model should forget, and in no parameter against what it should retain.

    Avoid when:
        you need weights, or `OneSidedPCGrad`, which projects whole gradients, is enough.
    """

    paper = "arXiv 2604.14808"

    def __init__(
        self, gamma: float = 1.0, alpha: float = 1.0, *, prefer_retain: bool = False
    ) -> None:
        super().__init__()
        for name, value in (("gamma", gamma), ("alpha", alpha)):
            if not math.isfinite(value):
                raise ValueError(f"{name}={value}: it must be finite")
        self.gamma, self.alpha = float(gamma), float(alpha)
        self.prefer_retain = prefer_retain

    def forward(
        self,
        lists: Sequence[Sequence[Tensor]],
        num_tasks: int,
        losses: Tensor | None = None,
    ) -> RowStep:
        if num_tasks != 2:
            raise ValueError(f"SAGO takes two tasks, retain and forget, not {num_tasks}")
        return RowStep([self._direction(grads) for grads in lists])

    def _direction(self, grads: Sequence[Tensor]) -> Tensor:
        """(L) the flat direction of one gradient list."""
        half = len(grads) // 2
        pairs = list(zip(grads[:half], grads[half:], strict=True))
        offsets = ops.flat_offsets([max(r.numel(), f.numel()) for r, f in pairs])
        out = grads[0].new_zeros(offsets[-1])
        for at, (retain, forget) in zip(offsets, pairs, strict=False):
            if retain.numel() or forget.numel():
                there = retain if retain.numel() else torch.zeros_like(forget)
                away = forget if forget.numel() else torch.zeros_like(retain)
                out[at : at + there.numel()] = self._choose(there.reshape(-1), away.reshape(-1))
        return out

    def _choose(self, retain: Tensor, forget: Tensor) -> Tensor:
        conflict = ((retain > 0) & (forget < 0)) | ((retain < 0) & (forget > 0))
        kept, other = self.alpha * retain, self.gamma * forget
        if self.prefer_retain:
            other = other + kept
        chosen = torch.where(conflict, kept, other)
        return torch.where(retain.isfinite() & forget.isfinite(), chosen, retain + forget)

    def extra_repr(self) -> str:
        return f"gamma={self.gamma}, alpha={self.alpha}, prefer_retain={self.prefer_retain}"
