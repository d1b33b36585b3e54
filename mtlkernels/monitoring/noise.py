"""Estimates from micro-batches: the Gram matrix without noise, and the noise scale."""

from __future__ import annotations

import torch
from torch import Tensor

from mtlkernels.aggregation.layout import TaskGrads, group_gradients
from mtlkernels.aggregation.weighting import total_gram


class NoiseMeter:
    """Estimates gradient noise by comparing independent micro-batches of one size.

        meter = NoiseMeter(samples=16)
        for step in range(100):
            for inputs, targets in micro_batches:
                losses = ...                                    # means over 16 samples each
                meter.add([torch.autograd.grad(loss, params, ...) for loss in losses])
            meter.step()
        meter.gram(), meter.noise_scale()

    Noise makes the gradients of a batch too long, and noise that tasks share changes their cosines.
    For M micro-batches with Gram matrices K_m, and G the Gram matrix of their mean gradients,

        U = (M G - mean_m K_m) / (M - 1)

    is free of this bias: it is the mean of the products <g_m, h_n> over m != n. It may be
    indefinite. With little signal U is uncertain, so it is averaged over steps, and the noise scale
    is a ratio of two averages. Nothing is read back from the device. The meter stores the sum of a
    step's gradients.

    Args:
        samples: the number of samples in a micro-batch.

    Raises:
        ValueError: samples is not a positive integer.
    """

    def __init__(self, samples: int) -> None:
        if isinstance(samples, bool) or not (isinstance(samples, int) and samples >= 1):
            raise ValueError(f"samples={samples}: it must be a whole number, at least 1")
        self.samples = samples
        self._total: list[list[Tensor | None]] = []
        self._products: Tensor | None = None
        self._count = 0
        self._gram: Tensor | None = None
        self._noise: Tensor | None = None
        self._steps: Tensor | None = None

    @torch.no_grad()
    def add(self, task_grads: TaskGrads) -> None:
        """Adds a micro-batch's gradients: T lists of P tensors, None for an absent gradient.

        Raises:
            ValueError: the tasks or parameters differ from those of the micro-batch before.
        """
        rows = [list(row) for row in task_grads]
        if self._count:
            _check_alike(self._total, rows)
        gram = total_gram(group_gradients(rows), len(rows))
        self._products = gram if self._products is None else self._products + gram
        if self._count:
            pairs = (zip(a, b, strict=True) for a, b in zip(self._total, rows, strict=True))
            self._total = [[_sum(a, b) for a, b in row] for row in pairs]
        else:  # in memory of its own: what autograd hands out may be used again
            self._total = [[_sum(None, grad) for grad in row] for row in rows]
        self._count += 1

    @torch.no_grad()
    def step(self) -> Tensor:
        """Ends a step, after which the parameters may change.

        Returns:
            (T, T) float64, U of its micro-batches. If it is not finite, the averages leave it out.

        Raises:
            ValueError: fewer than two micro-batches were added.
        """
        M = self._count
        if M < 2 or self._products is None:
            raise ValueError(f"{M} micro-batches were added: noise shows between two or more")
        whole = total_gram(group_gradients(self._total), len(self._total))
        gram = (whole - self._products) / (M * (M - 1))
        noise = (self._products / M - gram).diagonal()
        known = gram.isfinite().all() & noise.isfinite().all()
        found = (torch.where(known, gram, 0), torch.where(known, noise, 0), known.double())
        if self._gram is None or self._noise is None or self._steps is None:
            self._gram, self._noise, self._steps = found
        else:
            self._gram, self._noise, self._steps = (
                self._gram + found[0],
                self._noise + found[1],
                self._steps + found[2],
            )
        self._total, self._products, self._count = [], None, 0
        return gram

    def gram(self) -> Tensor:
        """(T, T) float64, the mean of U over the steps: the Gram matrix without noise.

        Raises:
            ValueError: no step has ended.
        """
        gram, _, steps = self._averages()
        return gram / steps

    def noise_scale(self) -> Tensor:
        """(T) each task's simple noise scale tr(S) / |g|^2 in samples (arXiv 1812.06162).

        S is the covariance of one sample's gradient, g the gradient without noise. A batch of that
        size has as much noise as signal; a much larger one gains little, a smaller one is mostly
        noise. Infinite if the averages show no signal, NaN if there was no gradient.

        Raises:
            ValueError: no step has ended.
        """
        gram, noise, _ = self._averages()
        signal = gram.diagonal().clamp_min(0)
        return self.samples * noise.clamp_min(0) / signal

    def _averages(self) -> tuple[Tensor, Tensor, Tensor]:
        if self._gram is None or self._noise is None or self._steps is None:
            raise ValueError("no step has ended: add(...) two micro-batches or more, then step()")
        return self._gram, self._noise, self._steps


def _check_alike(have: list[list[Tensor | None]], more: list[list[Tensor | None]]) -> None:
    """Raises ValueError if the gradients of two micro-batches cannot be added up."""
    if list(map(len, have)) != list(map(len, more)):
        raise ValueError(
            f"a micro-batch has gradients of {len(more)} tasks, {list(map(len, more))}, those "
            f"before of {len(have)}, {list(map(len, have))}: give the same tasks and parameters"
        )
    for t, rows in enumerate(zip(have, more, strict=True)):
        for p, (a, b) in enumerate(zip(*rows, strict=True)):
            if a is not None and b is not None and a.shape != b.shape:
                raise ValueError(
                    f"task {t}, parameter {p}: a gradient of shape {tuple(b.shape)} follows one of "
                    f"{tuple(a.shape)}: give the same parameters in each micro-batch"
                )


def _sum(have: Tensor | None, more: Tensor | None) -> Tensor | None:
    """have + more in place, at least float32; the first of a parameter in memory of its own."""
    if more is None:
        return have
    if have is None:
        return more.to(torch.promote_types(more.dtype, torch.float32), copy=True)
    return have.add_(more)
