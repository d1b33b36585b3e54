"""The report of one step, computed from the Gram matrix. Its tensors stay on the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntFlag

import torch
from torch import Tensor


class Status(IntFlag):
    """Flags of one task's entry in `Report.status`, combined by OR; 0 means nothing is wrong."""

    NON_FINITE = 1
    """The task's gradient, or its loss, holds a NaN or an infinity, which reaches the direction."""
    ZERO_GRADIENT = 2
    """The task's gradient is zero; it took no part. Its weight is 0, except for random weights."""
    STATIONARY = 4
    """Zero is in the convex hull of the gradients: no direction lowers all losses. The method used
    the result that its docstring gives for this case."""
    NO_CONVERGENCE = 8
    """The solver reached its limit of iterations; the weights are the best that it reached."""
    INVALID_LOSS = 32
    """The method cannot use the task's loss, for example because it is <= 0 and a logarithm is
    needed: the task took no part, and the others were balanced without it."""
    INVALID_GRAM = 128
    """Row t of K does not consist of inner products: K_tt < 0 or K_tj != K_jt. All weights are NaN,
    because a device cannot raise; on the CPU this is a RuntimeError."""
    ILL_CONDITIONED = 64
    """The result depends on differences below the rounding of K. A small ridge, or a cut-off of
    singular values, bounds the weights."""
    NO_SOLUTION = 16
    """The method's equations have no solution; the weights solve them with a small ridge on K."""
    ABSENT = 256
    """The task had no data in this step (its loss was None): it took no part. Its numbers in the
    report are 0."""


@dataclass(frozen=True, eq=False)
class Report:
    """The result of one step. All tensors are detached and on the gradients' device.

    With several ranks all numbers are global: the same on every rank.

    Attributes:
        tasks: T names: the keys of the losses, or their positions.
        gram: (T, T) float64, inner products of the task gradients over the measured parameters or
            features; with parts (B, T, T), one matrix per part. For a row method, of what it
            combines, for example moving averages. None for a loss method, which sees no task
            gradients, and for a row method that needs no Gram matrix.
        weights: (T) float64. The direction is sum_t weights_t g_t (for a row method, with what
            `gram` is computed from in place of g_t); with parts (B, T). None for a row method
            without weights.
        losses: (T), or None if none were given.
        collected: how the gradients were computed, in words.
        status: (T) int64, flags of `Status`. It is ABSENT for a task whose loss was None, whose
            entries in the other tensors are 0. For a row method with neither a Gram matrix nor a
            status of its own, the flags describe the losses only.
    """

    tasks: tuple[str, ...]
    gram: Tensor | None
    weights: Tensor | None
    losses: Tensor | None
    status: Tensor
    collected: str = "a backward a loss"

    def of_tasks(
        self, tasks: tuple[str, ...], order: Sequence[int], absent: Status = Status.ABSENT
    ) -> Report:
        """Extends the report from the tasks at positions `order` of `tasks` to all of them.

        The entries of the other tasks are 0, and their status is `absent`.
        """
        if list(order) == list(range(len(tasks))):
            return replace(self, tasks=tasks)
        seat = {t: i for i, t in enumerate(order)}
        places = [seat.get(t) for t in range(len(tasks))]
        gram = None if self.gram is None else _spread(_spread(self.gram, places, -2), places, -1)
        return replace(
            self,
            tasks=tasks,
            gram=gram,
            weights=None if self.weights is None else _spread(self.weights, places, -1),
            losses=None if self.losses is None else _spread(self.losses, places, -1),
            status=_spread(self.status, places, -1, absent.value),
        )

    def norms(self, by_part: bool = False) -> Tensor:
        """(T) norms of the task gradients; by part (B, T). 0 for an estimate K_tt below 0.

        Here and below, `by_part=True` raises ValueError if the step was taken without parts.
        """
        return self._measured(by_part).diagonal(dim1=-2, dim2=-1).clamp_min(0).sqrt()

    def cosines(self, by_part: bool = False) -> Tensor:
        """(T, T) cosines between the task gradients, 0 where one is zero; by part (B, T, T)."""
        norms = self.norms(by_part)
        scale = torch.where(norms > 0, norms, torch.inf)
        return (self._measured(by_part) / scale[..., :, None] / scale[..., None, :]).clamp(-1, 1)

    def present(self) -> Tensor:
        """(T) bool, whether a task had data in this step."""
        return (self.status & Status.ABSENT.value) == 0

    def conflicts(self) -> Tensor:
        """(T, T) 1 where two tasks' inner product is negative, else 0; NaN where it is NaN.

        The diagonal is 0.
        """
        gram = self._measured()
        two = torch.ones_like(gram, dtype=torch.bool).fill_diagonal_(False)
        return torch.where(gram.isnan(), gram, ((gram < 0) & two).to(gram))

    def conflict_rate(self, by_part: bool = False) -> Tensor:
        """Share of the pairs of tasks whose inner product is negative, a scalar; by part (B).

        Of the T(T-1)/2 pairs, those whose product is NaN and those of an absent task are left out.
        0 for one task, NaN if no pair is left.
        """
        gram = self._measured(by_part)
        if gram.shape[-1] == 1:
            return gram.new_zeros(gram.shape[:-2])
        here = self.present().to(gram)
        known = (here[:, None] * here).triu(diagonal=1) * gram.isnan().logical_not()
        return ((gram < 0) * known).sum(dim=(-2, -1)) / known.sum(dim=(-2, -1))

    def dominated_conflict(self) -> Tensor:
        """Whether the present task with the shortest gradient conflicts with the sum of all.

        A bool scalar, (K 1)_i < 0 at i = argmin K_ii: COST's trigger for few tasks (arXiv
        2503.04046). False if the shortest gradient is zero, or K is not finite. The stricter
        condition that the paper uses for many tasks is not known.
        """
        gram = self._measured()
        squares = torch.where(self.present(), gram.diagonal(), torch.inf)
        shortest = torch.arange(len(squares), device=squares.device) == squares.argmin()
        return ((gram.sum(dim=1) < 0) & shortest).any() & gram.isfinite().all()

    def alignment(self) -> Tensor:
        """How much the task gradients point the same way, 2 1^T C 1 / T^2 - 1, a scalar.

        C holds the cosines of the T present tasks whose gradient is not zero (arXiv 2502.00604): 1
        if all directions are equal, -1 if the unit gradients cancel, the cosine for two tasks. NaN
        if all gradients are zero.
        """
        cosines = self.cosines()
        count = (self.present() & (self.norms() != 0)).sum()
        return 2 * cosines.sum() / count.square() - 1

    def direction_norm(self) -> Tensor:
        """Norm of the direction, sqrt(w^T K w), a scalar: it needs no pass over the direction."""
        gram = self._given()
        assert self.weights is not None  # a Gram matrix is that of weighted rows
        return direction_norm(self.weights, gram)

    def weighted_norms(self) -> Tensor:
        """(T) length of each task's term in the direction, |w_t| |g_t|."""
        assert self.weights is not None
        squares = self._given().diagonal(dim1=-2, dim2=-1).clamp_min(0) * self.weights.square()
        return self._over_parts(squares).sqrt()

    def norm_ratio(self) -> Tensor:
        """Largest over smallest norm of the present tasks' gradients; infinite if one is zero."""
        norms = self.norms()
        return norms.max() / torch.where(self.present(), norms, torch.inf).min()

    def projections(self) -> Tensor:
        """(T) <g_t, d> / ||d||: how fast each loss falls per unit of length along the direction.

        0 if the direction is zero.
        """
        length = self.direction_norm()
        return self._over_parts(self._descents()) / torch.where(length > 0, length, torch.inf)

    def shares(self) -> Tensor:
        """(T) w_t <g_t, d> / ||d||^2: each task's share of the direction; they add up to 1.

        0 if the direction is zero.
        """
        assert self.weights is not None
        parts = self._over_parts(self.weights * self._descents())
        total = parts.sum()
        return parts / torch.where(total > 0, total, torch.inf)

    def magnitude_similarity(self) -> Tensor:
        """(T, T) 2 |g_i| |g_j| / (|g_i|^2 + |g_j|^2), 1 for equal lengths (arXiv 2001.06782)."""
        norms = self.norms()
        squares = norms.square()[:, None] + norms.square()
        return 2 * norms[:, None] * norms / torch.where(squares > 0, squares, torch.inf)

    def curvature_bound(self) -> Tensor:
        """(T, T) (1 - cos^2) |g_i - g_j|^2 / |g_i + g_j|^2 (arXiv 2001.06782).

        Removing a pair's conflict helps if the curvature of the loss along them exceeds it.
        """
        K = self._measured()
        squares = K.diagonal()[:, None] + K.diagonal()
        apart, along = (squares - 2 * K).clamp_min(0), (squares + 2 * K).clamp_min(0)
        return (1 - self.cosines().square()) * apart / torch.where(along > 0, along, torch.inf)

    def condition_number(self) -> Tensor:
        """Largest over smallest singular value of the present tasks' gradients (arXiv 2305.19000).

        A scalar; beyond about 1e7 it is rounding of the Gram matrix. On a GPU this waits for the
        device.
        """
        here = self.present()
        values = torch.linalg.eigvalsh(self._measured()[here][:, here]).clamp_min(0)
        return (values[-1] / values[0]).sqrt()

    def warnings(self) -> list[str]:
        """The status in words, one "task: FLAG" per flag. Reads the status from the device."""
        told = []
        for name, flags in zip(self.tasks, self.status.tolist(), strict=True):
            told += [f"{name}: {flag.name}" for flag in Status if flags & flag]
        return told

    def _descents(self) -> Tensor:
        """(T) or by part (B, T): <g_t, d>."""
        gram = self._given()
        assert self.weights is not None  # a Gram matrix is that of weighted rows
        return (gram @ self.weights[..., None])[..., 0]

    def _over_parts(self, numbers: Tensor) -> Tensor:
        return numbers.reshape(-1, len(self.tasks)).sum(dim=0)

    def _measured(self, by_part: bool = False) -> Tensor:
        """(T, T) over all parts, as Gram matrices add up; by part (B, T, T)."""
        gram = self._given()
        if by_part and gram.dim() == 2:
            raise ValueError("this step was taken without parts: pass parts= to measure each part")
        return gram.sum(dim=0) if gram.dim() == 3 and not by_part else gram

    def _given(self) -> Tensor:
        if self.gram is None:
            raise ValueError(
                f"this step has no Gram matrix ({self.collected}): a loss method, reused weights "
                "and some row methods do not compute one. Use a Gram method in this step, for "
                "example Sum(), to measure"
            )
        return self.gram


def _spread(tensor: Tensor, places: Sequence[int | None], dim: int, fill: int = 0) -> Tensor:
    """Entries of a dimension at other places, `fill` where there is none."""
    entries = tensor.unbind(dim)
    none = torch.full_like(entries[0], fill)
    return torch.stack([none if i is None else entries[i] for i in places], dim)


def direction_norm(weights: Tensor, gram: Tensor) -> Tensor:
    """The norm of sum_t w_t g_t, or over B parts together; weights (T) or (B, T), a scalar."""
    rows = weights[..., None, :]
    return (rows @ gram @ rows.mT).sum().clamp_min(0).sqrt()
