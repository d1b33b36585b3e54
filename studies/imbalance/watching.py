"""What is noted of the tasks' gradients on the way: norms, angles and conflicts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mtlkernels import ops

FIELDS = ("log_norms", "log_norms_last", "angles")


class Watch:
    """Sums over the looks at a run of T tasks; equal for all methods, as no weights are in it.

    `last` says which of the shared parameters are those of the last layer.
    """

    def __init__(self, tasks: int, last: Sequence[bool]) -> None:
        self.last = last
        self.looks = 0
        self.sums = {field: torch.zeros(tasks, dtype=torch.float64) for field in FIELDS}
        self.conflicts = 0.0

    def look(self, losses: Sequence[Tensor], shared: Sequence[Tensor]) -> None:
        """Adds the gradients of these losses, whose graph stays."""
        rows = [torch.autograd.grad(loss, shared, retain_graph=True) for loss in losses]
        at_last = [[g for g, last in zip(row, self.last, strict=True) if last] for row in rows]
        gram, gram_last = _gram(rows), _gram(at_last)
        norms = _log_norms(gram).exp()
        others = 1 - torch.eye(len(gram), dtype=gram.dtype)
        cosines = (gram / norms[:, None] / norms).clamp(-1, 1)
        angles = cosines.acos().rad2deg() * others
        self.looks += 1
        self.sums["log_norms"] += _log_norms(gram)
        self.sums["log_norms_last"] += _log_norms(gram_last)
        self.sums["angles"] += angles.sum(dim=1) / (len(gram) - 1)
        self.conflicts += ((gram < 0) * others).sum().item() / others.sum().item()

    def result(self) -> dict[str, object]:
        """Means over the looks: geometric ones of the norms, and in degrees each task's mean angle
        to the others; `conflicts` is the share of pairs with a negative cosine.
        """
        means = {field: self.sums[field] / self.looks for field in FIELDS}
        return {
            "norms": means["log_norms"].exp().tolist(),
            "norms_last": means["log_norms_last"].exp().tolist(),
            "angles": means["angles"].tolist(),
            "conflicts": self.conflicts / self.looks,
            "looks": self.looks,
        }

    def state(self) -> dict[str, object]:
        return {"looks": self.looks, "conflicts": self.conflicts, "sums": self.sums}

    def load(self, state: dict[str, object]) -> None:
        self.looks = state["looks"]  # type: ignore[assignment]
        self.conflicts = state["conflicts"]  # type: ignore[assignment]
        self.sums = state["sums"]  # type: ignore[assignment]


def _gram(rows: Sequence[Sequence[Tensor]]) -> Tensor:
    return ops.gram([grad for row in rows for grad in row], len(rows))


def _log_norms(gram: Tensor) -> Tensor:
    return gram.diagonal().clamp_min(torch.finfo(gram.dtype).tiny).sqrt().log()
