"""MoCo: weights that descend on the norm of averaged gradients' combination."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from mtlkernels import ops
from mtlkernels.methods.base import NON_FINITE
from mtlkernels.methods.row.averages import KeepsRows, ones, positive_losses
from mtlkernels.methods.row.base import RowStep


class MoCo(KeepsRows):
    r"""Multi-objective gradient correction (Fernando et al., ICLR 2023, arXiv 2210.12624).

    .. math::
        y_t \leftarrow y_t - \beta_k (y_t - h_t), \quad \lambda \leftarrow \Pi\bigl(\lambda -
        \gamma_k (Y Y^T + \rho I) \lambda\bigr), \qquad d = \sum_t \lambda_t y_t

    In step k, with beta_k = beta / k^beta_sigma and gamma_k = gamma / k^gamma_sigma: y_t <- y_t -
    beta_k (y_t - h_t), K = Y Y^T, lambda <- project(lambda - gamma_k (K + rho I) lambda), d = sum_t
    lambda_t y_t. The averages y reduce the noise in MGDA's min-norm problem, on which lambda takes
    one step. y starts at zero, lambda at 1 / T. Not scale-free: gamma has the unit of 1 / ||g||^2.

    Args:
        beta, beta_sigma: rate of the averages. LibMTL: 0.5 and 0.5; beta in 0 .. 1.
        gamma, gamma_sigma: step of lambda. LibMTL: 0.1 and 0.5.
        rho: regularisation of lambda. LibMTL: 0.
        project: "simplex" the Euclidean projection of the theory; "softmax" is what LibMTL computes
            instead, which is not a projection: it moves any lambda towards equal numbers.
        rows: "gradients" tracks h_t = g_t; "normalized" LibMTL's h_t = L_t g_t / ||g_t||, for which
            the norms take one more pass over the gradients and losses have to be positive; a zero
            gradient then tracks zero. `MoCo(project="softmax", rows="normalized")` is LibMTL's.

    A step with a gradient that is not finite gives a direction that is not, does not change lambda
    or the averages of the elements concerned, and is not counted. With "normalized" a task whose
    loss is <= 0 takes no part in its step: its lambda and average do not change, the lambda of the
    others count as fractions of their sum, and its status is INVALID_LOSS. The report's Gram
    matrix, norms and cosines are those of the averages; its weights are lambda. With
    `weight_heads=True` a head gets lambda_t h_t, of its own gradient and not of an average.

    Use when:
        you want MGDA's direction under noisy gradients.

    Avoid when:
        memory is short (T N numbers), or the gradients' scale changes: `gamma` has a unit.
    """

    paper = "arXiv 2210.12624"
    keeps = "T averages, T weights, a count"

    weights: Tensor

    def __init__(
        self,
        beta: float = 0.5,
        beta_sigma: float = 0.5,
        gamma: float = 0.1,
        gamma_sigma: float = 0.5,
        rho: float = 0.0,
        *,
        project: Literal["simplex", "softmax"] = "simplex",
        rows: Literal["gradients", "normalized"] = "gradients",
    ) -> None:
        super().__init__()
        if not 0 < beta <= 1:
            raise ValueError(f"beta={beta}: it must be in 0 .. 1, without 0")
        numbers = {"beta_sigma": beta_sigma, "gamma": gamma, "gamma_sigma": gamma_sigma, "rho": rho}
        for name, number in numbers.items():
            if not (math.isfinite(number) and number >= 0):
                raise ValueError(f"{name}={number}: it must be finite and at least 0")
        if project not in ("simplex", "softmax"):
            raise ValueError(f'project={project!r}: choose "simplex" or "softmax"')
        if rows not in ("gradients", "normalized"):
            raise ValueError(f'rows={rows!r}: choose "gradients" or "normalized"')
        self.beta, self.beta_sigma = float(beta), float(beta_sigma)
        self.gamma, self.gamma_sigma = float(gamma), float(gamma_sigma)
        self.rho = float(rho)
        self.project = project
        self.rows = rows
        self.register_lazy("weights", "simplex")

    def forward(
        self,
        lists: Sequence[Sequence[Tensor]],
        num_tasks: int,
        losses: Tensor | None = None,
    ) -> RowStep:
        scale = ones(lists, num_tasks)
        out = torch.zeros_like(scale, dtype=torch.bool)
        invalid = torch.zeros_like(scale, dtype=torch.int64)
        if self.rows == "normalized":
            scale, out, invalid = positive_losses(losses, scale, 'MoCo(rows="normalized")')
            square = torch.zeros_like(scale)
            for grads in lists:
                square += ops.gram(grads, num_tasks).diagonal().to(square.device)
            scale = scale / torch.where(square == 0, torch.inf, square.sqrt())
        k = self.step.to(scale) + 1
        gram = self._track(lists, num_tasks, scale, self.beta / k**self.beta_sigma, out)
        if len(self.weights) == 0:
            self.weights = torch.full_like(scale, 1 / num_tasks)
        moved, state = self._move(gram, out, self.gamma / k**self.gamma_sigma)
        finite = gram.isfinite().all()
        self.weights = torch.where(finite, state, self.weights)
        self.status = torch.where(gram.diagonal().isfinite(), 0, NON_FINITE) | invalid
        weights = torch.where(finite, moved, torch.nan)
        heads = torch.where(weights == 0, weights, scale * weights)
        return RowStep(self._combined(lists, weights), weights, gram, heads)

    def _move(self, gram: Tensor, out: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor]:
        """(T) lambda of this step, on the simplex of those that take part, and what is kept."""
        kept = torch.where(out, self.weights, 0.0)
        share = torch.where(out.any(), 1 - kept.sum(), 1.0)
        equal = (~out).double() / (~out).sum().clamp_min(1)
        own = torch.where(share > 0, torch.where(out, 0.0, self.weights) / share, equal)
        moved = own - gamma * (gram @ own + self.rho * own)
        if self.project == "simplex":
            far = torch.where(out, -torch.inf, moved).max() - 2  # so low that 0 is its projection
            moved = ops.onto_simplex(torch.where(out & ~out.all(), far, moved))
        else:
            moved = torch.softmax(torch.where(out & ~out.all(), -torch.inf, moved), dim=0)
        moved = torch.where(out, 0.0, moved)
        return moved, kept + share * moved

    def extra_repr(self) -> str:
        return (
            f"beta={self.beta}, beta_sigma={self.beta_sigma}, gamma={self.gamma}, "
            f"gamma_sigma={self.gamma_sigma}, rho={self.rho}, project={self.project!r}, "
            f"rows={self.rows!r}"
        )
