"""Methods that measure each loss against its own mean at the end of a warm-up: STCH and IGB."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from mtlkernels.methods.loss.base import LossMethod
from mtlkernels.methods.numbers import Numbers, numbers_of


class _Warmed(LossMethod):
    """Trains on sum_i log L_i for some steps; the losses' means over the last of them are kept.

    A loss <= 0, or None, takes no part in its step, nor in the mean; a task never in it takes the
    first loss that it has after the warm-up.
    """

    keeps = "a mean loss, missed steps per task"

    total: Tensor
    missed: Tensor  # steps of the mean that a task has taken no part in
    steps: Tensor

    def __init__(self, warmup: int, average: int | None) -> None:
        super().__init__()
        if warmup < 1:
            raise ValueError(f"warmup={warmup}: it must be at least 1")
        average = max(1, warmup // 4) if average is None else average
        if not 1 <= average <= warmup:
            raise ValueError(f"average={average}: choose 1 to warmup={warmup} steps")
        self.warmup = warmup
        self.average = average
        self.register_state("total", 0.0)
        self.register_state("missed", 0.0)
        self.register_buffer("steps", torch.tensor(0, dtype=torch.int64))

    def advance(self, losses: Tensor) -> tuple[Tensor, Tensor]:
        """Counts a step. Returns whether it is one of the warm-up, and the means (1 until then)."""
        seen, part = losses.detach(), self.taking_part()
        warm = self.steps < self.warmup
        late = ~warm & (self.missed == self.average) & part
        total = torch.where(late, seen, self.total)
        missed = self.missed - late.to(self.missed)
        have = (self.average - missed).clamp_min(1)
        base = torch.where(warm | (missed == self.average), 1.0, total / have)
        counts = warm & (self.steps >= self.warmup - self.average)
        self.remember(total=total + torch.where(counts, seen, 0.0), steps=self.steps + 1)
        moves = self.fine() & part.any()
        missed = missed + torch.where(counts & ~part, 1.0, 0.0)
        self.missed.copy_(torch.where(moves, missed, self.missed))
        self._missed_by_absent = torch.where(moves & counts, 1.0, 0.0)
        return warm, base

    def _fill_of(self, name: str) -> float | Tensor:
        """A new task has missed all steps of the mean that there were."""
        if name == "missed":
            return (self.steps - self.warmup + self.average).clamp(0, self.average).double()
        return super()._fill_of(name)


class STCH(_Warmed):
    r"""Smooth Tchebycheff scalarisation (Lin et al., arXiv 2402.19078).

    .. math:: L = T \mu \log \sum_i \Bigl(\frac{L_i}{z_i}\Bigr)^{1/\mu}

    form="log": T mu log sum_i (L_i / z_i)^(1/mu), as published for multi-task training and in
    LibMTL; z, the nadir, is each loss's mean over the last steps of a warm-up on sum_i log L_i.
    Weights T softmax(log(L / z) / mu)_i / L_i, for mu = 1 exactly T / (z_i sum_j L_j / z_j).
    Scaling one loss for good changes no gradient. A loss <= 0 takes no part, in the warm-up and
    after it, and does not count in T; its status is INVALID_LOSS.

    form="linear": mu log sum_i exp((L_i - z_i) / (T mu)), the paper's definition at uniform
    preferences, z the ideal point; weights softmax((L - z) / (T mu)) / T. No warm-up, no state.
    TorchJD has this form and asks for mu.

    Args:
        mu: 1, LibMTL's. Smaller is closer to the largest term alone.
        warmup: steps. LibMTL's default is 4 epochs: 4 * len(loader); 1 here, the first step alone.
        average: how many of the last warm-up steps the nadir averages; a quarter by default, which
            is LibMTL's last epoch.
        nadir: T numbers, in order or by name, to use as z from the first step on, without warm-up.
        form: "log" or "linear".
        reference: T numbers, in order or by name, or one, the ideal point of the linear form.

    Use when:
        the worst loss matters, relative to where it was after the warm-up.

    Avoid when:
        losses after the warm-up are not representative (curricula, new tasks).
    """

    paper = "arXiv 2402.19078"

    reference: Tensor

    def __init__(
        self,
        mu: float = 1.0,
        *,
        warmup: int = 1,
        average: int | None = None,
        nadir: Numbers | None = None,
        form: Literal["log", "linear"] = "log",
        reference: Numbers | float = 0.0,
    ) -> None:
        super().__init__(warmup, average)
        if not (math.isfinite(mu) and mu > 0):
            raise ValueError(f"mu={mu}: it must be finite and positive")
        if form not in ("log", "linear"):
            raise ValueError(f'form={form!r}: choose "log" or "linear"')
        self.mu = float(mu)
        self.form = form
        self.register_numbers("reference", reference)
        if nadir is not None:
            given, names = numbers_of(nadir)
            if given.dim() != 1 or not (given.isfinite() & (given > 0)).all():
                raise ValueError(f"nadir={nadir}: give one finite and positive number per task")
            given = self.in_given_order("nadir", given, names)
            self.start_with("total", self.average * given)
            self.start_with("missed", torch.zeros_like(given))
            self.start_with("steps", torch.tensor(self.warmup, dtype=torch.int64))

    def forward(self, losses: Tensor) -> Tensor:
        losses = self.admit(losses, above=0.0 if self.form == "log" else None)
        if self.form == "linear":
            T = len(losses)
            gap = (losses - self.reference) / (T * self.mu)
            return self.mu * gap.logsumexp(dim=0)
        logs = losses.log()  # 0 for those that take no part
        warm, z = self.advance(losses)
        part = self.taking_part()
        gap = torch.where(part | ~part.any(), (logs - z.log()) / self.mu, -torch.inf)
        smooth = part.sum(dtype=torch.float64) * self.mu * gap.logsumexp(dim=0)
        return torch.where(warm, logs.sum(), smooth)

    def extra_repr(self) -> str:
        return f"mu={self.mu}, warmup={self.warmup}, average={self.average}, form={self.form!r}"


class IGB(_Warmed):
    r"""Improvable gap balancing, version 1 (Dai et al., arXiv 2307.15429): sum_i w_i log L_i.

    .. math::
        L = \sum_i w_i \log L_i, \qquad w = T
        \operatorname{softmax}\Bigl(\frac{L}{L_{\text{base}}}\Bigr)

    w = T softmax(L / L_base), detached: more weight to the losses that have improved less. L_base
    is each loss's mean over the last steps of a warm-up with w = 1; then the weights on the losses
    themselves are w_i / L_i. Scaling one loss for good changes no gradient. A loss <= 0 takes no
    part, in the warm-up and after it, and T counts those that do: INVALID_LOSS. Version 2, which
    draws w from an agent trained beside the model, is not here.

    Args:
        warmup: steps. The published code warms up for whole epochs: give epochs * len(loader); 1
            here, the first step alone.
        average: how many of the last warm-up steps L_base averages; the published code takes one
            epoch. A quarter of the warm-up by default.

    Use when:
        tasks that have improved least should catch up.

    Avoid when:
        a task cannot improve (noisy labels): it gets more and more weight.
    """

    paper = "arXiv 2307.15429"

    def __init__(self, *, warmup: int = 1, average: int | None = None) -> None:
        super().__init__(warmup, average)

    def forward(self, losses: Tensor) -> Tensor:
        losses = self.admit(losses, above=0.0)
        warm, base = self.advance(losses)
        weights = self.taking_part().sum() * self.softmax(losses.detach() / base)
        return (torch.where(warm, 1.0, weights) * losses.log()).sum()  # log 1 of an invalid loss

    def extra_repr(self) -> str:
        return f"warmup={self.warmup}, average={self.average}"
