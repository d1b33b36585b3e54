"""Running averages of reports, which are read from the device now and then and given to sinks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from mtlkernels.monitoring.sinks import (
    JSONL,
    MATRICES,
    PAIRS,
    PART,
    SCALARS,
    VECTORS,
    as_sink,
    check_names,
)
from mtlkernels.report import Report, Status


class Monitor:
    """Averages reports over k steps and writes one record for them.

        monitor = Monitor(JSONL("run.jsonl"), every=50)
        for batch in loader:
            ...
            monitor(optimizer.backward(losses))

    Between records everything stays on the device; a record costs one transfer of a few T x T
    numbers. A record holds `step` (the last one), `steps` (how many are averaged), `tasks`,
    and means of `losses`, `weights` and the following methods of `Report`: `norms`,
    `weighted_norms`, `projections`, `shares`, `cosines`, `conflicts`, `magnitude_similarity`,
    `curvature_bound`, `conflict_rate`, `dominated_conflict` (the share of steps), `alignment`,
    `norm_ratio` and `direction_norm`; and `status`, for each task the names of all flags that were
    set. `known` is the share of the steps in which a pair's
    cosine (on the diagonal, a task's norm) is finite; the mean of `conflicts` is how often two
    tasks conflicted in those steps. Means are over the steps in which a number is finite and known,
    and NaN (null in JSON) if there is none; so a step without a task does not count for that task.
    `weights` are NaN if parts had different ones. The condition number is left out, because it
    would wait for a GPU in every step.

    With names of parts, `parts` has for each part the means of `norms`, `cosines` and
    `conflict_rate` over the steps taken with `parts=`, and over all steps the means of `pairs` (how
    many pairs of tasks both reach the part with a known gradient) and of `conflicting_pairs`:

        layers = mtlkernels.named_parts(model.encoder)  # heads have no pairs, only columns
        optimizer = MTLOptimizer(base, PCGrad(), parts=list(layers.values()))
        monitor = Monitor(JSONL("run.jsonl"), parts=layers)

    Args:
        sinks: `JSONL`, anything with `add_scalar(tag, value, step)` as TensorBoard's writer
            has, or with `log(numbers, step=step)` as Weights & Biases' run has.
        every: k, at least 1.
        parts: names of the parts, in the order of `parts=`.
        step: how many steps were taken before, for a continued run. Without it the steps start at 1
            again; Weights & Biases then drops them, and TensorBoard draws over the old ones.

    Raises:
        TypeError: a sink is of another kind.
        ValueError: every is not a positive integer, step is not a non-negative integer, or two
            parts have one name.
    """

    def __init__(
        self, *sinks: Any, every: int = 50, parts: Iterable[str] = (), step: int = 0
    ) -> None:
        if not (isinstance(every, int) and every >= 1):
            raise ValueError(f"every={every}: it must be a whole number, at least 1")
        if not (isinstance(step, int) and step >= 0):
            raise ValueError(f"step={step}: give the whole number of steps taken before, 0 or more")
        self.every = every
        self._parts = tuple(parts)
        if len(set(self._parts)) < len(self._parts):
            raise ValueError(f"parts={', '.join(self._parts)}: give each part a name of its own")
        self._sinks = [as_sink(sink) for sink in sinks]
        self._step = self._written = step
        self._tasks: tuple[str, ...] = ()
        self._totals: Tensor | None = None

    @torch.no_grad()
    def __call__(self, report: Report) -> None:
        """Adds one step's report; writes a record after every k-th.

        Raises:
            ValueError: the report has a task that the first one did not have or another number of
                parts than there are names, or names with slashes give two columns of a sink one
                name.
        """
        if self._tasks not in ((), report.tasks):
            if not set(report.tasks) <= set(self._tasks):
                raise ValueError(
                    f"the report is of the tasks {', '.join(report.tasks)}, those before were of "
                    f"{', '.join(self._tasks)}: use a monitor for each set of tasks, and give "
                    "backward None for a task that has no data"
                )
            places = [self._tasks.index(task) for task in report.tasks]
            report = report.of_tasks(self._tasks, places)
        if not self._tasks and not all(isinstance(sink, JSONL) for sink in self._sinks):
            check_names(report.tasks, self._parts)  # now, not when the first record is lost
        self._tasks = report.tasks
        numbers = _numbers(report, self._parts)
        known = numbers.isfinite()
        flags = _flags(report.status).double().to(numbers.device)
        apart = _apart(report).to(flags)
        row = torch.cat([torch.where(known, numbers, 0.0), known.double(), flags, apart])
        self._totals = row if self._totals is None else self._totals + row
        self._step += 1
        if self._step % self.every == 0:
            self.flush()

    def flush(self) -> dict[str, Any] | None:
        """Writes the record of the steps since the last one; None where there are none.

        If sinks raise, the first error is raised after all of them have been written to.
        """
        if self._totals is None:
            return None
        shapes = _shapes(len(self._tasks), len(self._parts))
        sizes = [shape.numel() for shape in shapes.values()]
        totals = self._totals.cpu()
        self._totals = None
        bits = _bits()
        ends = [sum(sizes), sum(sizes), len(self._tasks) * bits, 1]
        sums, counts, flags, apart = totals.split(ends)
        means = (sums / counts).split(sizes)  # NaN where there is nothing
        record: dict[str, Any] = {
            "step": self._step,
            "steps": self._step - self._written,
            "tasks": list(self._tasks),
        }
        for (name, shape), mean in zip(shapes.items(), means, strict=True):
            record[name] = mean.view(shape).tolist()
        if apart > 0:
            record["weights"] = [math.nan] * len(self._tasks)
        if self._parts:
            columns = {name: record.pop(_by_part(name)) for name in PART}
            record["parts"] = {
                part: {name: column[b] for name, column in columns.items()}
                for b, part in enumerate(self._parts)
            }
        record["status"] = [
            [Status(1 << bit).name for bit, count in enumerate(row) if count > 0]
            for row in flags.view(-1, bits).tolist()
        ]
        self._written = self._step
        errors = []
        for sink in self._sinks:
            try:
                sink.write(record)
            except Exception as error:  # a full disk is no reason to lose it for the others too
                errors.append(error)
        if errors:
            raise errors[0]
        return record

    def postfix(self, report: Report) -> dict[str, str]:
        """Returns losses and weights of a step for a progress bar. Reads them from the device."""
        shown = {}
        for name, values in (("loss", report.losses), ("weight", report.weights)):
            if values is not None and values.dim() == 1:
                for task, value in zip(report.tasks, values.tolist(), strict=True):
                    shown[f"{name} {task}"] = f"{value:.3g}"
        return shown


def _shapes(T: int, B: int) -> dict[str, torch.Size]:
    """The shapes of a record's numbers, by name."""
    whole = {
        **dict.fromkeys(VECTORS, torch.Size([T])),
        **dict.fromkeys(MATRICES, torch.Size([T, T])),
        **dict.fromkeys(SCALARS, torch.Size([])),
    }
    return whole | {_by_part(name): torch.Size([B, *whole.get(name, ())]) for name in PART if B}


def _by_part(name: str) -> str:
    return f"parts/{name}"


def _numbers(report: Report, parts: tuple[str, ...]) -> Tensor:
    """All numbers in one float64 vector, NaN where the report has none."""
    found = _found(report, parts)
    device = report.status.device
    numbers = []
    for name, shape in _shapes(len(report.tasks), len(parts)).items():
        value = found.get(name)
        if value is None:
            value = torch.full(shape, torch.nan, device=device)
        value = _of_present(name, value.detach().to(device, torch.float64), report.present())
        numbers.append(value.reshape(-1))
    return torch.cat(numbers)


def _of_present(name: str, value: Tensor, here: Tensor) -> Tensor:
    """A record's numbers, NaN for absent tasks, whose pairs are not known."""
    kind = name.removeprefix(_by_part(""))
    pair = here & here[:, None]
    if kind == "known":
        return value * pair
    if kind in MATRICES:
        return torch.where(pair, value, torch.nan)
    return torch.where(here, value, torch.nan) if kind in VECTORS else value


def _found(report: Report, parts: tuple[str, ...]) -> dict[str, Tensor | None]:
    """The report's numbers, by name."""
    T, device = len(report.tasks), report.status.device
    found: dict[str, Tensor | None] = {
        "losses": report.losses,
        "weights": report.weights,
        # Without a Gram matrix none, not unknown: their means are over all steps.
        "known": torch.zeros(T, T, device=device),
        **{_by_part(name): torch.zeros(len(parts), device=device) for name in PAIRS},
    }
    if report.gram is not None:
        asked: dict[str, Callable[[], Tensor]] = {
            "norms": report.norms,
            "cosines": report.cosines,
            "known": lambda: report.cosines().isfinite(),
            "conflicts": lambda: _conflicts(report),
            "conflict_rate": report.conflict_rate,
            "norm_ratio": report.norm_ratio,
            "dominated_conflict": lambda: _dominated(report),
            "alignment": report.alignment,
            "magnitude_similarity": report.magnitude_similarity,
            "curvature_bound": report.curvature_bound,
        }
        if report.weights is not None:
            asked |= {
                "weighted_norms": report.weighted_norms,
                "projections": report.projections,
                "shares": report.shares,
                "direction_norm": report.direction_norm,
            }
        found |= {name: ask() for name, ask in asked.items()}
        if parts and report.gram.dim() == 3:
            _check_parts(parts, len(report.gram))
            found |= {
                _by_part("norms"): report.norms(by_part=True),
                _by_part("cosines"): report.cosines(by_part=True),
                _by_part("conflict_rate"): report.conflict_rate(by_part=True),
                **{_by_part(name): count for name, count in _pairs(report).items()},
            }
    if report.weights is not None and report.weights.dim() == 2:
        found["weights"] = report.weights[0]  # of all parts, or `_apart` says that they differ
    return found


def _conflicts(report: Report) -> Tensor:
    """Conflicts of pairs with a known cosine: an infinite product has a sign but no cosine."""
    return torch.where(report.cosines().isfinite(), report.conflicts(), torch.nan)


def _dominated(report: Report) -> Tensor:
    """Whether the shortest gradient conflicts with the sum; NaN if K is not finite."""
    assert report.gram is not None
    found = report.dominated_conflict().to(report.gram)
    return torch.where(report.gram.isfinite().all(), found, torch.nan)


def _pairs(report: Report) -> dict[str, Tensor]:
    """(B) numbers of pairs in which both tasks reach the part, and of those that conflict there."""
    assert report.gram is not None
    reach = report.norms(by_part=True) > 0
    known = report.cosines(by_part=True).isfinite()
    pairs = (known & reach[:, :, None] & reach[:, None, :]).triu(diagonal=1)
    conflicting = pairs & (report.gram < 0)
    return {"pairs": pairs.sum(dim=(1, 2)), "conflicting_pairs": conflicting.sum(dim=(1, 2))}


def _apart(report: Report) -> Tensor:
    """(1) whether the parts have different weights, so that a task has no single weight."""
    weights = report.weights
    if weights is None or weights.dim() == 1:
        return torch.zeros(1)
    return ((weights != weights[0]) & weights.isfinite()).any().reshape(1)


def _check_parts(names: tuple[str, ...], num_parts: int) -> None:
    if len(names) != num_parts:
        raise ValueError(
            f"the monitor has names for {len(names)} parts and the report is of {num_parts}: give "
            "it the names of what parts= was given, in that order"
        )


def _flags(status: Tensor) -> Tensor:
    """(T * bits) whether each flag of each task is set."""
    bits = torch.arange(_bits(), device=status.device)
    return (status[:, None] >> bits & 1).reshape(-1)


def _bits() -> int:
    return max(Status).bit_length()
