"""Task gradients of several micro-batches, added up until the method combines them."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from mtlkernels.autograd.task_gradients import Rows


class Accumulation:
    """What waits to be combined; empty at first.

    `add` takes gradients of losses that say how they count themselves: the sum is what the method
    sees. `add_weighted` takes those of `optimizer.loss`, whose factors come from outside: the
    method sees their weighted mean, and .grad is that direction times the sum of the factors. So
    the method sees the same whether a loop divides each loss by the number of micro-batches or not.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Drops everything."""
        self.rows: Rows | None = None
        self.factor: Tensor | None = None  # the sum of the factors, with `add_weighted`
        self.count = 0  # of backward passes, with `add_weighted`

    def add(self, rows: Rows) -> None:
        """Adds one micro-batch, by `optimizer.backward(losses, accumulate=True)`.

        Raises:
            ValueError: see `Rows.add`; or others were added by `add_weighted`.
        """
        if self.factor is not None:
            raise ValueError(
                "gradients of a loss of optimizer.loss(losses, accumulate=...) wait: take that for "
                "each micro-batch, or combine() first"
            )
        self._add(rows)

    def add_weighted(self, rows: Rows) -> None:
        """Adds one micro-batch, by the backward pass of `optimizer.loss(losses)`.

        Raises:
            ValueError: see `Rows.add`; or others were added by `add`.
        """
        if self.rows is not None and self.factor is None:
            raise ValueError(
                "gradients of backward(losses, accumulate=True) wait: take that for each "
                "micro-batch, or combine() first"
            )
        one = torch.ones((), dtype=torch.float64, device=rows.losses.device)
        factor = one if rows.scale is None else rows.scale.to(one)
        self._add(replace(rows, scale=None, losses=rows.losses * factor.to(rows.losses)))
        self.factor = factor if self.factor is None else self.factor + factor
        self.count += 1

    def _add(self, rows: Rows) -> None:
        if self.rows is None:
            self.rows = rows.keep()
        else:
            self.rows.add(rows)

    def whole(self) -> Rows | None:
        """All that was added, as one batch, or None."""
        if self.rows is None or self.factor is None:
            return self.rows
        total = torch.where(self.factor == 0, 1.0, self.factor)
        losses = self.rows.losses / total.to(self.rows.losses)
        return replace(self.rows, scale=self.factor, losses=losses)
