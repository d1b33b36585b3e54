"""What the Gram matrix tells a person. Everything stays on the device until somebody looks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntFlag

import torch
from torch import Tensor


class Status(IntFlag):
    """Flags of one task's entry in `Report.status`, OR-ed together; 0 says nothing is wrong."""

    NON_FINITE = 1
    """The task's gradient, or its loss, holds a NaN or an infinity, which reaches the direction."""
    ZERO_GRADIENT = 2
    """The task's gradient is zero; it took no part. Its weight is 0, but for rules that draw."""
    STATIONARY = 4
    """Zero lies in the convex hull of the gradients; the method's fallback there was used."""
    NO_CONVERGENCE = 8
    """The solver met its bound on work first; its weights are the best point it reached."""
    INVALID_LOSS = 32
    """The task's loss is none that the method can take, for example <= 0 for a logarithm: the task
    took no part, and the others went on without it."""
    INVALID_GRAM = 128
    """Row t of K is none of inner products: K_tt < 0 or K_tj != K_jt. All weights are NaN, as a
    device cannot raise; on the CPU this is a RuntimeError."""
    ILL_CONDITIONED = 64
    """The answer hangs on differences below the rounding of K; no weight grows beyond what a ridge,
    or a cut-off of singular values, above that rounding allows."""
    NO_SOLUTION = 16
    """The method's equations have no solution; its weights solve them with a small ridge on K."""
    ABSENT = 256
    """The task had no data in this step (its loss was None): it took no part. What the report says
    of it in numbers is 0."""


@dataclass(frozen=True, eq=False)
class Report:
    """One step's balancing. All tensors are detached and on the gradients' device.

    With several ranks all of it is global: the same numbers on every rank.

    Attributes:
        tasks: T names, the keys of the losses or their numbers.
        gram: (T, T) float64, inner products of the tasks' gradients over what was measured; with
            parts (B, T, T), a matrix a part. For a row method those of the rows that it weighs,
            moving averages for example. None for a loss method, which takes one backward and sees
            no task's own gradient, and for a row method that needs none.
        weights: (T) float64, the direction is sum_t weights_t g_t, or of the rows that `gram` is
            of; with parts (B, T), a row a part. None for a row method that has none.
        losses: (T), or None where none were given.
        collected: how the gradients came about.
        statistic: "exact", `gram` is that of the gradients; "unbiased", an estimate of what it
            would be without the noise of the batch, which may be indefinite (`gram="unbiased"`).
            All that the methods below tell is then that of the estimate: `norms`, `projections`,
            `shares` and `direction_norm` are not those of this step's gradients and direction but
            of their signal, and 0 where no signal beyond the noise is seen.
        status: (T) int64, flags of `Status`. Of a task whose loss was None it is ABSENT, and what
            the other tensors say of it is 0. Where a row method has neither a Gram matrix nor a
            word of its own, it speaks of the losses alone.
    """

    tasks: tuple[str, ...]
    gram: Tensor | None
    weights: Tensor | None
    losses: Tensor | None
    status: Tensor
    collected: str = "a backward a loss"
    statistic: str = "exact"

    def of_tasks(
        self, tasks: tuple[str, ...], order: Sequence[int], absent: Status = Status.ABSENT
    ) -> Report:
        """Extends the report from the tasks at some positions of `tasks` to all of them.

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
        """(T) norms of the tasks' gradients; by part (B, T). 0 for an estimate K_tt below 0.

        Here and below, `by_part=True` raises ValueError where the step was not taken with parts.
        """
        return self._measured(by_part).diagonal(dim1=-2, dim2=-1).clamp_min(0).sqrt()

    def cosines(self, by_part: bool = False) -> Tensor:
        """(T, T) cosines between the tasks' gradients, 0 where one is zero; by part (B, T, T)."""
        norms = self.norms(by_part)
        scale = torch.where(norms > 0, norms, torch.inf)
        return (self._measured(by_part) / scale[..., :, None] / scale[..., None, :]).clamp(-1, 1)

    def present(self) -> Tensor:
        """(T) whether a task had data in this step."""
        return (self.status & Status.ABSENT.value) == 0

    def conflicts(self) -> Tensor:
        """(T, T) 1 where two tasks' inner product is negative, else 0; NaN where it is NaN.

        A task is in no conflict with itself, though an unbiased estimate of K_tt may be negative.
        """
        gram = self._measured()
        two = torch.ones_like(gram, dtype=torch.bool).fill_diagonal_(False)
        return torch.where(gram.isnan(), gram, ((gram < 0) & two).to(gram))

    def conflict_rate(self, by_part: bool = False) -> Tensor:
        """Share of the pairs whose product is negative; by part (B).

        Of the T(T-1)/2 pairs, those whose product is NaN and those of an absent task are left out.
        0 for one task, NaN where no pair is known.
        """
        gram = self._measured(by_part)
        if gram.shape[-1] == 1:
            return gram.new_zeros(gram.shape[:-2])
        here = self.present().to(gram)
        known = (here[:, None] * here).triu(diagonal=1) * gram.isnan().logical_not()
        return ((gram < 0) * known).sum(dim=(-2, -1)) / known.sum(dim=(-2, -1))

    def direction_norm(self) -> Tensor:
        """Norm of the direction, sqrt(w^T K w): no pass over the direction is needed.

        Of an unbiased K that of its signal, 0 where w^T K w is negative.
        """
        gram = self._given()
        assert self.weights is not None  # a Gram matrix is that of weighted rows
        return direction_norm(self.weights, gram)

    def weighted_norms(self) -> Tensor:
        """(T) lengths of what the tasks add to the direction, |w_t| |g_t|."""
        assert self.weights is not None
        squares = self._given().diagonal(dim1=-2, dim2=-1).clamp_min(0) * self.weights.square()
        return self._over_parts(squares).sqrt()

    def norm_ratio(self) -> Tensor:
        """Largest over smallest norm of a present task's gradient; infinite where one is zero."""
        norms = self.norms()
        return norms.max() / torch.where(self.present(), norms, torch.inf).min()

    def projections(self) -> Tensor:
        """(T) <g_t, d> / ||d||: how fast a step along the direction lowers each loss, a unit.

        0 where the direction is zero, or an unbiased K sees no signal in it.
        """
        length = self.direction_norm()
        return self._over_parts(self._descents()) / torch.where(length > 0, length, torch.inf)

    def shares(self) -> Tensor:
        """(T) w_t <g_t, d> / ||d||^2: each task's part in the direction; they add up to 1.

        0 where the direction is zero, or an unbiased K sees no signal in it.
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
        """(T, T) (1 - cos^2) |g_i - g_j|^2 / |g_i + g_j|^2, of arXiv 2001.06782.

        Where a pair's conflict is worth removing, the loss's curvature along them exceeds it.
        """
        K = self._measured()
        squares = K.diagonal()[:, None] + K.diagonal()
        apart, along = (squares - 2 * K).clamp_min(0), (squares + 2 * K).clamp_min(0)
        return (1 - self.cosines().square()) * apart / torch.where(along > 0, along, torch.inf)

    def condition_number(self) -> Tensor:
        """Largest over smallest singular value of the T gradients (arXiv 2305.19000).

        Of the present tasks. Beyond about 1000 it is rounding of the Gram matrix. On a GPU this
        waits for the device.
        """
        here = self.present()
        values = torch.linalg.eigvalsh(self._measured()[here][:, here]).clamp_min(0)
        return (values[-1] / values[0]).sqrt()

    def warnings(self) -> list[str]:
        """What the status says, a sentence a flag. Reads the status from the device."""
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
            raise ValueError(
                "this step was not taken with parts: give parts= with PerPart(method, num_parts), "
                "or Whole(method) where they are only to be looked at"
            )
        return gram.sum(dim=0) if gram.dim() == 3 and not by_part else gram

    def _given(self) -> Tensor:
        if self.gram is None:
            raise ValueError(
                f"this step has no Gram matrix ({self.collected}): a loss method takes one "
                "backward, in which no task's own gradient appears, reused weights need none, nor "
                "may a row method. Use a Gram method in this step, for example Sum(), to measure"
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
