"""SDMGrad and MoDo: weights that descend on products of gradients from independent batches."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from mtlkernels import ops
from mtlkernels.methods.gram.base import SizedByTasks
from mtlkernels.methods.numbers import Numbers
from mtlkernels.methods.preference import register_preference


class SDMGrad(SizedByTasks):
    r"""Stochastic direction-oriented descent (Xiao, Ban and Ji, arXiv 2305.18409).

    .. math::
        w \leftarrow \Pi_\Delta\bigl(w - \eta (A w + \lambda A p)\bigr), \quad A = G_1 G_2^T,
        \qquad d = \frac{\sum_t (w_t + \lambda p_t) g_t}{1 + \lambda}

    With A = G1 G2^T of two independent batches (`ops.cross_gram`), w approaches the minimiser over
    the simplex of 1/2 w^T A w + lam w^T A 1/T by `iterations` steps of projected SGD with momentum,
    starting where the last call ended; d = (G3^T w + lam g0) / (1 + lam) on a third batch. The
    method is that iteration, not the minimiser: A is a noisy estimate and not symmetric. A is taken
    in units of the squared mean norm, so all gradients' scale does not matter. Homogeneous of
    degree 1 in the gradients. With a preference p, of sum 1, both 1/T and the mean g0 become p and
    sum_t p_t g_t.

    With one batch, pass its Gram matrix K, as `aggregate` and `backward` do; this is what the
    published code computes, because its three buffers are the same.

    Args:
        lam: at least 0; the pull of the mean. 0.3 is that of the published runs, of LibMTL and
            torchjd; the published class has 0.6.
        lr: positive, of the inner steps. 10 is the published code's and torchjd's, LibMTL has 5.
        momentum: in [0, 1); 0.5 is the published code's. It starts anew in each call.
        iterations: of the inner steps; 20 everywhere.
        preference: p, one number per task, in order or by name, at least 0 and not all 0, as
            shares: the direction that lam pulls to. None is the mean gradient, as in the published
            code; torchjd calls it pref_vector.

    A zero gradient takes no part and keeps its share of w. Products of two batches may be negative
    on the diagonal: those count as 0 in the mean norm, and where all do, w stays. The published
    code adds 1e-4 to A_ii there. The state `w` (T), uniform at first, is in `state_dict`.

    Use when:
        batches are small, and their noise misleads a rule that looks for the worst task; give
        it independent batches.

    Avoid when:
        you have one batch a step and no time to tune: `CAGrad` is the exact rule nearest to it.
    """

    paper = "arXiv 2305.18409"
    cost = "T backward passes per batch"
    keeps = "a weight per task"

    w: Tensor
    preference: Tensor
    _sized: ClassVar = {"w": ("simplex", 0.0)}

    def __init__(
        self,
        lam: float = 0.3,
        *,
        lr: float = 10.0,
        momentum: float = 0.5,
        iterations: int = 20,
        preference: Numbers | None = None,
    ) -> None:
        super().__init__()
        if not (math.isfinite(lam) and lam >= 0):
            raise ValueError(f"lam={lam}: it must be finite and at least 0")
        if not (math.isfinite(lr) and lr > 0):
            raise ValueError(f"lr={lr}: it must be finite and positive")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum={momentum}: it must be in 0 .. 1, below 1")
        if not (isinstance(iterations, int) and iterations >= 1):
            raise ValueError(f"iterations={iterations}: it must be a whole number, at least 1")
        self.lam = float(lam)
        self.lr = float(lr)
        self.momentum = float(momentum)
        self.iterations = iterations
        register_preference(self, preference)

    def forward(self, gram: Tensor, losses: Tensor | None = None) -> Tensor:
        """Weights for one step; w moves.

        Args:
            gram: (T, T) float64, A or K.
            losses: not used.
        """
        if self._first_call(gram):
            self.w = torch.full_like(gram[0], 1 / len(gram))
        if len(self.preference) not in (0, len(gram)):
            raise ValueError(f"preference has {len(self.preference)} numbers for {len(gram)} tasks")
        if self.preference.device != gram.device:
            self.to(gram.device)
        goal = self.preference if len(self.preference) else None
        numbers = (self.iterations, self.lr, self.momentum, self.lam, 0.0, True)
        weights, self.status, self.w = ops.simplex_descent(gram, self.w, *numbers, goal)
        return weights

    def extra_repr(self) -> str:
        return (
            f"lam={self.lam}, lr={self.lr}, momentum={self.momentum}, iterations={self.iterations}"
        )


class MoDo(SizedByTasks):
    r"""Multi-objective gradient with double sampling (Chen et al., arXiv 2305.20057).

    .. math::
        w \leftarrow \Pi_\Delta\bigl(w - \gamma (A w + \rho w)\bigr), \quad A = G_1 G_2^T,
        \qquad d = \sum_t w_t g_t

    w <- projection on the simplex of w - gamma (A w + rho w), A = G1 G2^T of two independent
    batches (`ops.cross_gram`); d = G3^T w on a third, or on both. One step a call.

    gamma has the unit of one over a squared gradient, so a common factor of all gradients (a loss
    scaler's, say) moves w: the rule has no degree. `Normalized(MoDo())` takes the unit out of a
    Gram matrix. With one batch, pass its K, as `aggregate` and `backward` do; the estimate of the
    true Gram matrix is then biased by the gradients' noise.

    Args:
        gamma: positive. torchjd's default is 0.1, LibMTL's 1e-3, a hundredth.
        rho: at least 0, pulls w to the uniform one. 0.1 is LibMTL's and torchjd's.

    A zero gradient takes no part and keeps its share of w. The state `w` (T), uniform at first, is
    in `state_dict`.

    Use when:
        as for `SDMGrad`, with one cheap step and slow weights.

    Avoid when:
        the gradients' scale changes during training: `gamma` has a unit; use
        `Normalized(MoDo())`.
    """

    paper = "arXiv 2305.20057"
    cost = "T backward passes per batch"
    keeps = "a weight per task"

    w: Tensor
    _sized: ClassVar = {"w": ("simplex", 0.0)}

    def __init__(self, gamma: float = 0.1, rho: float = 0.1) -> None:
        super().__init__()
        if not (math.isfinite(gamma) and gamma > 0):
            raise ValueError(f"gamma={gamma}: it must be finite and positive")
        if not (math.isfinite(rho) and rho >= 0):
            raise ValueError(f"rho={rho}: it must be finite and at least 0")
        self.gamma = float(gamma)
        self.rho = float(rho)

    def forward(self, gram: Tensor, losses: Tensor | None = None) -> Tensor:
        """Weights for one step; w moves.

        Args:
            gram: (T, T) float64, A or K.
            losses: not used.
        """
        if self._first_call(gram):
            self.w = torch.full_like(gram[0], 1 / len(gram))
        numbers = (1, self.gamma, 0.0, 0.0, self.rho, False)
        weights, self.status, self.w = ops.simplex_descent(gram, self.w, *numbers)
        return weights

    def extra_repr(self) -> str:
        return f"gamma={self.gamma}, rho={self.rho}"
