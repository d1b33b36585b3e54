"""Any Gram method on gradients that are rescaled one by one.

With S a diagonal matrix, a method that gets S K S returns weights of the gradients s_i g_i; S times
these are weights of the g_i. No gradient is read.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Literal

import torch
from torch import Tensor

from mtlkernels import ops
from mtlkernels.methods.base import INVALID_LOSS
from mtlkernels.methods.gram.base import GramMethod
from mtlkernels.methods.numbers import Numbers
from mtlkernels.methods.preference import preferred_shares, register_preference


class _Preconditioned(GramMethod):
    """A method on S K S, whose weights are mapped back to S w."""

    _needs_losses = False
    _keep_weights = False

    def __init__(self, method: GramMethod) -> None:
        super().__init__()
        if not isinstance(method, GramMethod):
            raise ValueError(
                f"method is a {type(method).__name__}, not a Gram method: give one, "
                "for example PCGrad()"
            )
        self.method = method

    @abstractmethod
    def _scale(self, gram: Tensor, losses: Tensor | None) -> Tensor:
        """(T) the diagonal of S."""

    def _inner_losses(self, losses: Tensor | None, scale: Tensor) -> Tensor | None:
        """The losses that the method sees; of one that takes no part it sees the loss itself."""
        return losses

    def forward(self, gram: Tensor, losses: Tensor | None = None) -> Tensor:
        ops.check_gram(gram)
        if losses is not None and losses.shape != gram.shape[:1]:
            raise ValueError(f"{losses.numel()} losses were given for {len(gram)} tasks")
        if not self._needs_losses:
            return self._solve(gram, losses)
        if losses is None:
            raise ValueError(
                f"{type(self).__name__} needs the tasks' losses: pass losses= to aggregate"
            )
        losses = losses.detach().to(gram)
        good = (losses > 0) & losses.isfinite()
        out = (losses <= 0) & losses.isfinite()  # takes no part: to the method a zero gradient
        usable = torch.where(good, losses, torch.where(out, 1.0, torch.nan))
        shown = torch.where(out | out[:, None], 0.0, gram)
        weights = self._solve(shown, usable, torch.where(out, losses, torch.nan))
        # in the place of a bad loss the method saw another: what K says of the gradient stands
        self.status = torch.where(good, self.status, ops.task_status(gram) | INVALID_LOSS)
        spoilt = ~(good | out).all() | (out.any() & ~gram.isfinite().all())
        return torch.where(out, 0.0, weights) + torch.where(spoilt, torch.nan, 0.0)

    def _solve(self, gram: Tensor, losses: Tensor | None, invalid: Tensor | None = None) -> Tensor:
        """The weights; invalid: (T) losses that the method is to see as they are, NaN elsewhere."""
        scale = self._scale(gram, losses)
        inner = self._inner_losses(losses, scale)
        if invalid is not None and inner is not None:
            inner = torch.where(invalid.isnan(), inner, invalid)
        weights = self.method(gram * scale * scale[:, None], inner)
        self.status = self.method.status
        return weights if self._keep_weights else scale * weights


def _norms(gram: Tensor) -> Tensor:
    """(T) of the gradients. A negative square stays in K, where the method finds it."""
    return gram.diagonal().abs().sqrt()


class Normalized(_Preconditioned):
    r"""A method on normalised gradients: "l2" g_i / ||g_i||, "loss" g_i / L_i, "loss+" both.

    .. math::
        d = \sum_i w_i \frac{g_i}{\lVert g_i \rVert}, \qquad w \text{ the method's weights for
        } \frac{g_i}{\lVert g_i \rVert}

    These are the normalisations of MGDA's official code (arXiv 1810.04650), for any Gram method.
    With "l2" the direction is homogeneous of degree 0 in the gradients, unless `keep_weights=True`.

    Args:
        method: any Gram method.
        by: "l2", "loss" or "loss+". The last two need positive losses: a loss <= 0 takes no part in
            its step, like a zero gradient, its weight is 0 and its status is INVALID_LOSS. A loss
            that is not finite has the same status and makes all weights NaN.
        keep_weights: apply the method's weights to the gradients as they are, as the official MGDA
            does; by default they belong to the normalised gradients, as in LibMTL.

    Use when:
        a method should not see the gradients' lengths, for example `Normalized(MGDA())`.

    Avoid when:
        the method is scale-free itself (`AvgNorm`, `NashMTL`, `ConFIG`).
    """

    paper = "arXiv 1810.04650"

    def __init__(
        self,
        method: GramMethod,
        by: Literal["l2", "loss", "loss+"] = "l2",
        keep_weights: bool = False,
    ) -> None:
        super().__init__(method)
        if by not in ("l2", "loss", "loss+"):
            raise ValueError(f'by={by!r}: choose "l2", "loss" or "loss+"')
        self.by = by
        self.keep_weights = keep_weights
        self._needs_losses = by != "l2"
        self._keep_weights = keep_weights

    def _scale(self, gram: Tensor, losses: Tensor | None) -> Tensor:
        if self.by == "loss":
            assert losses is not None
            return losses.reciprocal()
        norm = _norms(gram)
        unit = torch.where(norm == 0, norm, norm.reciprocal())
        return unit / losses if self.by == "loss+" and losses is not None else unit

    def extra_repr(self) -> str:
        return f"by={self.by!r}, keep_weights={self.keep_weights}"


class Preferred(_Preconditioned):
    r"""A method on p_i g_i, with p a preference: as if the losses were p_i L_i.

    .. math:: d = \sum_i w_i p_i g_i, \qquad w \text{ the method's weights for } p_i g_i

    Args:
        method: any Gram method.
        preference: one number per task, at least 0, in order or by name. p is their number times
            their shares of the sum, over the tasks whose gradient is not zero: equal numbers leave
            the method as it is. A task with 0 takes no part.

    A baseline, from no paper.

    Use when:
        some tasks matter more than others.

    Avoid when:
        the method divides lengths out (`AvgNorm`, `NashMTL`): it then divides p out too.
    """

    paper = "baseline"
    keeps = "its tasks' names"

    preference: Tensor

    def __init__(self, method: GramMethod, preference: Numbers) -> None:
        super().__init__(method)
        if preference is None:
            raise ValueError("preference=None: give one number per task")
        register_preference(self, preference)

    def _scale(self, gram: Tensor, losses: Tensor | None) -> Tensor:
        takes_part = gram.diagonal() != 0
        return takes_part.sum() * preferred_shares(self, takes_part)

    def _inner_losses(self, losses: Tensor | None, scale: Tensor) -> Tensor | None:
        return None if losses is None else scale * losses.detach().to(scale)

    def extra_repr(self) -> str:
        return f"preference={self.preference.tolist()}"


class ClippedTasks(_Preconditioned):
    r"""A method on gradients clipped one by one: g_i min(1, max_norm / ||g_i||).

    .. math::
        d = \sum_i w_i c_i g_i, \qquad c_i = \min\Bigl(1, \frac{\text{max\_norm}}{\lVert g_i
        \rVert}\Bigr)

    Args:
        method: any Gram method.
        max_norm: positive, in the gradients' own units.

    A baseline, from no paper.

    Use when:
        one task's gradient has outliers that would decide the direction.

    Avoid when:
        only the direction should be bounded: call `clip_grad_norm_` after `backward`.
    """

    paper = "baseline"

    def __init__(self, method: GramMethod, max_norm: float) -> None:
        super().__init__(method)
        if not (math.isfinite(max_norm) and max_norm > 0):
            raise ValueError(f"max_norm={max_norm}: it must be finite and positive")
        self.max_norm = float(max_norm)

    def _scale(self, gram: Tensor, losses: Tensor | None) -> Tensor:
        return (self.max_norm / _norms(gram)).clamp_max(1)

    def extra_repr(self) -> str:
        return f"max_norm={self.max_norm}"


class LogLosses(_Preconditioned):
    r"""A method on the gradients of log L_i, g_i / L_i: the losses' units do not matter.

    .. math::
        d = \sum_i \frac{w_i}{L_i} g_i, \qquad w \text{ the method's weights for }
        \frac{g_i}{L_i}

    The method sees log L_i as losses. A loss <= 0 takes no part in its step: the method sees a zero
    gradient, and its weight is 0. A loss that is not finite makes all weights NaN. The status of
    both is INVALID_LOSS; nothing is read from the device. With an epsilon inside the logarithm
    (1e-8 in DB-MTL, arXiv 2308.12029) losses of its size would be damped; here there is none.
    Scaling losses and gradients together does not change the direction if the method is homogeneous
    of degree 1.

    Args:
        method: any Gram method; `LogLosses(AvgNorm("max"))` is DB-MTL without averages.

    Use when:
        the losses have different units.

    Avoid when:
        losses can be 0 or negative: such a task takes no part in its step.
    """

    paper = "arXiv 2308.12029"

    _needs_losses = True

    def _scale(self, gram: Tensor, losses: Tensor | None) -> Tensor:
        assert losses is not None
        return losses.reciprocal()

    def _inner_losses(self, losses: Tensor | None, scale: Tensor) -> Tensor | None:
        return None if losses is None else losses.log()
