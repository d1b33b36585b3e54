"""PCD: the primary task's gradient, moved just enough that every other task makes progress."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from mtlkernels import ops
from mtlkernels.methods.base import ILL_CONDITIONED, NO_SOLUTION, NON_FINITE, STATIONARY
from mtlkernels.methods.gram.base import SizedByTasks, finished
from mtlkernels.methods.gram.one_sided_pcgrad import checked_task

# With x = d~ - g~_p in units of ||g~_p||, the problem's least value is 1 / (1 + ||x||^2). Below
# this the solution is more than 10^4 such lengths away: to K's rounding there is none.
_INFEASIBLE = 1e-8


class PCD(SizedByTasks):
    r"""Priority-constrained descent (TMLR 2026, arXiv 2606.29521).

    .. math::
        \tilde d = \arg\min_d \tfrac{1}{2} \lVert d - \tilde g_p \rVert^2 \;\text{ subject to }\;
        \langle \tilde g_j, d \rangle \ge \tau \lVert \tilde g_j \rVert^2 \; (j \ne p), \qquad
        \tilde g_i = \frac{g_i}{\sqrt{\hat v_i}}, \quad d = \lVert g_p \rVert \frac{\tilde d}
        {\lVert \tilde d \rVert}

    v_i is the bias-corrected average of ||g_i||^2 over the steps. Every secondary task gets at
    least the share tau of the first-order progress that its own normalised gradient would make; d
    has the length of the primary gradient. Degree 1 in the gradients; a secondary loss times a
    constant changes nothing. For T = 2: d~ = g~_1 + max(0, tau - <g~_1, g~_2> / ||g~_2||^2) g~_2.

    Args:
        tau: in 0 .. 1; 0.02, the paper's and torchjd's.
        beta: in [0, 1), of the average; 0.999, the paper's and torchjd's.
        primary: the primary task, by its name or its position; the first one by default.

    Where the constraints contradict one another they are dropped: d = g_p, and the status says
    NO_SOLUTION. Where d~ is 0 so is d, STATIONARY. Where the primary gradient is zero, d is 0; a
    step without the primary task is a plain sum. The paper and torchjd add eps = 1e-8 to v; here
    there is none, so that the scale of the gradients does not matter. A zero gradient moves its
    average and takes no part otherwise. The state, `average` and `steps` (T), is in `state_dict`.

    Use when:
        one loss is the goal, and each of the others must at least not get worse.

    Avoid when:
        all tasks matter alike: `UPGrad` and `NashMTL` know no order.
    """

    paper = "arXiv 2606.29521"
    keeps = "a squared norm, a count per task"

    average: Tensor
    steps: Tensor
    _sized: ClassVar = {"average": ("own", 0.0), "steps": ("own", 0.0)}

    def __init__(self, tau: float = 0.02, beta: float = 0.999, *, primary: int | str = 0) -> None:
        super().__init__()
        if not 0 <= tau <= 1:
            raise ValueError(f"tau={tau}: it must lie in 0 .. 1")
        if not 0 <= beta < 1:
            raise ValueError(f"beta={beta}: it must lie in 0 .. 1, below 1")
        self.tau, self.beta = float(tau), float(beta)
        self.primary = checked_task(primary)

    def forward(self, gram: Tensor, losses: Tensor | None = None) -> Tensor:
        status = ops.task_status(gram)
        if self._first_call(gram):
            self.average, self.steps = torch.zeros_like(gram[0]), torch.zeros_like(gram[0])
        scale = self._scales(gram, status)
        place = self.place_of(self.primary, len(gram), "primary")
        if place is None:
            self.status = status
            return finished(torch.ones_like(gram[0]), status)
        first = torch.arange(len(gram), device=gram.device) == place
        normalised = gram * scale * scale[:, None]
        pull, flags = self._pull(normalised, place, first)
        weights = torch.where(first, 1.0, pull)
        length = (weights @ normalised @ weights).clamp_min(0).sqrt()
        size = weights.abs() @ normalised.diagonal().sqrt()
        gone = length <= 1e-7 * size  # K is exact to 2^-47 of the squares
        ratio = gram[place, place].sqrt() / torch.where(gone, 1.0, length)
        weights = torch.where(gone | (gram[place, place] == 0), 0.0, weights * scale * ratio)
        flags = torch.where(gone & (size > 0), STATIONARY, flags)
        self.status = torch.where(status == 0, flags, status)
        return finished(weights, status)

    def _scales(self, gram: Tensor, status: Tensor) -> Tensor:
        """(T) 1 / sqrt(v), and the average moves where K is finite."""
        fine = ~((status & NON_FINITE) > 0).any()
        steps = self.steps + 1
        average = self.beta * self.average + (1 - self.beta) * gram.diagonal()
        self.steps = torch.where(fine, steps, self.steps)
        self.average = torch.where(fine, average, self.average)
        corrected = average / (1 - self.beta**steps)
        return torch.where(corrected > 0, corrected.rsqrt(), 0.0)

    def _pull(self, K: Tensor, place: int, first: Tensor) -> tuple[Tensor, Tensor]:
        """(T) the multipliers mu >= 0 of the constraints, and the status of the problem.

        The nearest point to g_p of a polyhedron <g_j, d> >= b_j is a projection on a cone in one
        dimension more (Lawson and Hanson's least-distance problem): with h_j = b_j - <g_j, g_p>,
        u minimises ||sum_j u_j (g_j, h_j) - (0, 1)|| over u >= 0. That is DualProj's problem, with
        -(0, 1) in the place of the primary task. The support of u is that of mu, which the
        equations of the active constraints give without the cancellation of u / (1 - u.h).
        """
        unit = torch.where(K[place, place] > 0, K[place, place].sqrt(), 1.0)
        h = torch.where(first, 0.0, (self.tau * K.diagonal() - K[place]) / unit)
        both = first | first[:, None]
        lifted = torch.where(both, -h - h[:, None], K + h * h[:, None])
        lifted = torch.where(first & first[:, None], 1.0, lifted)
        found, said = ops.dualproj(lifted, first.to(K))
        u = torch.where(first, 0.0, found)
        infeasible = 1 - u @ h <= _INFEASIBLE
        active = (u > 0) & ~infeasible
        norm = torch.where(active, K.diagonal().sqrt(), 1.0)
        cosines = torch.where(active & active[:, None], K / norm / norm[:, None], 0.0)
        cosines = cosines + torch.diag(torch.where(active, 1e-14, 1.0))
        wanted = torch.where(active, h * unit / norm, 0.0)
        solved = torch.linalg.solve_ex(cosines, wanted)[0] / norm
        flags = torch.where(infeasible, NO_SOLUTION, (said & ILL_CONDITIONED).max())
        return torch.where(active, solved.clamp_min(0), 0.0), flags

    def extra_repr(self) -> str:
        return f"tau={self.tau}, beta={self.beta}, primary={self.primary!r}"
