"""Running averages of reports, fetched from the device now and then and handed to sinks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mtlkernels.report import Report, Status
from mtlkernels.sinks import MATRICES, SCALARS, VECTORS, as_sink


class Monitor:
    """Averages what reports say over k steps, and writes one record for them.

        monitor = Monitor(JSONL("run.jsonl"), every=50)
        for batch in loader:
            ...
            monitor(optimizer.backward(losses))

    Between records everything stays on the device; a record costs one transfer of a few T x T
    numbers. A record holds `step` (the last one), `steps` (how many are in the averages), `tasks`,
    means of `losses`, `norms`, `weights`, `cosines`, `shares`, `conflict_rate`, `norm_ratio` and
    `direction_norm`, and `status`, for each task the names of all flags that came up. Means are
    over the steps in which a number is finite and known, and NaN, in JSON null, where there is none
    such step.

    Args:
        sinks: `CSV`, `JSONL`, anything with `add_scalar(tag, value, step)` as TensorBoard's writer
            has, or with `log(numbers, step)` as Weights & Biases' run has.
        every: k, at least 1.

    Raises:
        TypeError: a sink is none.
        ValueError: every is no positive whole number.
    """

    def __init__(self, *sinks: Any, every: int = 50) -> None:
        if not (isinstance(every, int) and every >= 1):
            raise ValueError(f"every={every}: it must be a whole number, at least 1")
        self.every = every
        self._sinks = [as_sink(sink) for sink in sinks]
        self._step = self._written = 0
        self._tasks: tuple[str, ...] = ()
        self._totals: Tensor | None = None

    @torch.no_grad()
    def __call__(self, report: Report) -> None:
        """Takes one step's report; writes a record after every k-th.

        Raises:
            ValueError: its tasks are others than those before.
        """
        if self._tasks not in ((), report.tasks):
            raise ValueError(
                f"the report is of the tasks {', '.join(report.tasks)}, those before were of "
                f"{', '.join(self._tasks)}: use a monitor for each set of tasks"
            )
        self._tasks = report.tasks
        numbers = _numbers(report)
        known = numbers.isfinite()
        flags = _flags(report.status).double().to(numbers.device)
        row = torch.cat([torch.where(known, numbers, 0.0), known.double(), flags])
        self._totals = row if self._totals is None else self._totals + row
        self._step += 1
        if self._step % self.every == 0:
            self.flush()

    def flush(self) -> dict[str, Any] | None:
        """Writes the record of the steps since the last one; None where there are none."""
        if self._totals is None:
            return None
        shapes = _shapes(len(self._tasks))
        sizes = [shape.numel() for shape in shapes.values()]
        totals = self._totals.cpu()
        self._totals = None
        bits = _bits()
        sums, counts, flags = totals.split([sum(sizes), sum(sizes), len(self._tasks) * bits])
        means = (sums / counts).split(sizes)  # NaN where there is nothing
        record: dict[str, Any] = {
            "step": self._step,
            "steps": self._step - self._written,
            "tasks": list(self._tasks),
        }
        for (name, shape), mean in zip(shapes.items(), means, strict=True):
            record[name] = mean.view(shape).tolist()
        record["status"] = [
            [Status(1 << bit).name for bit, count in enumerate(row) if count > 0]
            for row in flags.view(-1, bits).tolist()
        ]
        self._written = self._step
        for sink in self._sinks:
            sink.write(record)
        return record

    def postfix(self, report: Report) -> dict[str, str]:
        """Losses and weights of a step for a progress bar. Reads them from the device."""
        shown = {}
        for name, values in (("loss", report.losses), ("weight", report.weights)):
            if values is not None and values.dim() == 1:
                for task, value in zip(report.tasks, values.tolist(), strict=True):
                    shown[f"{name} {task}"] = f"{value:.3g}"
        return shown


def _shapes(T: int) -> dict[str, torch.Size]:
    """What a record's numbers are."""
    return {
        **dict.fromkeys(VECTORS, torch.Size([T])),
        **dict.fromkeys(MATRICES, torch.Size([T, T])),
        **dict.fromkeys(SCALARS, torch.Size([])),
    }


def _numbers(report: Report) -> Tensor:
    """All of them in one float64 vector, NaN where the report does not know."""
    T = len(report.tasks)
    found: dict[str, Tensor | None] = {"losses": report.losses, "weights": report.weights}
    if report.gram is not None:
        asked: dict[str, Callable[[], Tensor]] = {
            "norms": report.norms,
            "cosines": report.cosines,
            "conflict_rate": report.conflict_rate,
            "norm_ratio": report.norm_ratio,
        }
        if report.weights is not None:
            asked |= {"shares": report.shares, "direction_norm": report.direction_norm}
        found |= {name: ask() for name, ask in asked.items()}
    if report.weights is not None and report.weights.dim() == 2:
        found["weights"] = None  # a row a part: no one number a task
    device = report.status.device
    parts = []
    for name, shape in _shapes(T).items():
        value = found.get(name)
        if value is None:
            value = torch.full(shape, torch.nan, device=device)
        parts.append(value.detach().to(device, torch.float64).reshape(-1))
    return torch.cat(parts)


def _flags(status: Tensor) -> Tensor:
    """(T * bits) whether each flag of each task is up."""
    bits = torch.arange(_bits(), device=status.device)
    return (status[:, None] >> bits & 1).reshape(-1)


def _bits() -> int:
    return max(Status).bit_length()
