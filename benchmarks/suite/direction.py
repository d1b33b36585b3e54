"""From per-task gradients to the direction: every provider beside a copy of the same bytes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from benchmarks.suite.cases import CASES, gradients, numel
from benchmarks.suite.memory import Observed, observe
from benchmarks.suite.oracle import Oracle, oracle
from benchmarks.suite.providers import OURS, PROVIDERS
from benchmarks.suite.results import Row, available_bytes
from benchmarks.suite.timing import Run, rotating, sets_of, timings, wait

COPY = "copy"
READS = "reads and a write"
BASELINES = (COPY, READS)
# A copy of more than this is done in parts: its speed is the same and the memory is not needed.
COPY_BYTES = 1 << 30
PATIENCE = 5.0  # seconds: who needs longer for one run takes no turns
# What a peer takes besides the gradients, in sizes of them: copies, flattened rows, projections.
PEERS_TAKE = 4


@dataclass(frozen=True)
class Setting:
    """One table: a case, a number of tasks, a dtype, a method, a device.

    cached: one set of gradients, which a cache holds where it fits, as right after a backward.
    """

    case: str
    tasks: int
    dtype: torch.dtype
    method: str
    device: torch.device
    clock: str = "wall"
    cached: bool = False

    def gradients(self) -> list[Tensor]:
        """A task-major list on the device."""
        drawn = gradients(CASES[self.case](), self.tasks, self.dtype)
        return [grad.to(self.device) for grad in drawn]

    @property
    def elements(self) -> int:
        """Of one task."""
        return numel(CASES[self.case]())

    @property
    def row_bytes(self) -> int:
        """Of one task's gradients."""
        return self.elements * self.dtype.itemsize

    def row(self, suite: str, name: str, num_bytes: int) -> Row:
        """What every row of the table says."""
        return Row(
            suite=suite,
            case=self.case,
            tasks=self.tasks,
            dtype=str(self.dtype)[6:],
            method=self.method,
            name=name,
            tensors=len(CASES[self.case]()),
            numel=self.elements,
            threads=torch.get_num_threads(),
            bytes=num_bytes,
        )


def copy_of(num_bytes: int, dtype: torch.dtype, device: torch.device) -> Run:
    """dst.copy_(src) that reads and writes so many bytes in all."""
    parts = max(1, num_bytes // (2 * COPY_BYTES))
    count = num_bytes // (2 * parts * dtype.itemsize)
    source = torch.ones(count, dtype=dtype, device=device)
    target = torch.zeros(count, dtype=dtype, device=device)

    def run() -> None:
        for _ in range(parts):
            target.copy_(source)

    return run


def reads_and_a_write(grads: list[Tensor], num_tasks: int) -> Run:
    """Two sums over each gradient and a fill: the same traffic in its own proportions."""
    flat = torch.cat([grad.reshape(-1) for grad in grads])
    target = torch.zeros(flat.numel() // num_tasks, dtype=flat.dtype, device=flat.device)
    return lambda: (flat.sum(), flat.sum(), target.fill_(1))


def compare(setting: Setting, providers: Sequence[str], budget: float) -> list[Row]:
    """Checks every provider's direction, times those that are right, all in turns."""
    moved = (2 * setting.tasks + 1) * setting.row_bytes
    blank = setting.row("providers", "", moved)
    taken = setting.tasks * setting.row_bytes
    if 2 * taken + min(moved, 2 * COPY_BYTES) > available_bytes():
        return [replace(blank, name=OURS, told=_too_large(taken))]
    grads = setting.gradients()
    count = 1 if setting.cached else sets_of(taken)
    sets = [grads, *([grad.clone() for grad in grads] for _ in range(count - 1))]
    runs: dict[str, Run] = {
        COPY: rotating([copy_of(moved, setting.dtype, setting.device) for _ in sets])
    }
    seen: dict[str, tuple[Observed | None, float | None]] = {COPY: (None, None)}
    told: dict[str, str] = {}
    if PEERS_TAKE * taken < available_bytes():
        runs[READS] = rotating([reads_and_a_write(g, setting.tasks) for g in sets])
        seen[READS] = None, None
    right = oracle(grads, setting.tasks, setting.method)
    for name in providers:
        needed = taken if name == OURS else PEERS_TAKE * taken
        if needed > available_bytes():
            told[name] = _too_large(needed)
            continue
        try:
            prepare = PROVIDERS[name](setting.tasks, setting.method)
            run = prepare(grads)
            seen[name] = _examined(run, right, grads, setting.device)
            runs[name] = rotating([run, *map(prepare, sets[1:])])
        except Exception as problem:  # a peer that is missing or fails says so in its row
            told[name] = str(problem).strip().split("\n")[0][:150] or type(problem).__name__
    found = timings(runs, budget, setting.device, setting.clock)
    rows = []
    for name, timing in found.items():
        watched, error = seen[name]
        rows.append(
            replace(
                blank,
                name=name,
                seconds=(timing.low, timing.median, timing.high),
                turns=timing.turns,
                how=timing.how,
                copy=found[COPY].median,
                peak=watched.peak if watched else None,
                operators=watched.operators if watched else None,
                reads=watched.reads if watched else None,
                error=error,
            )
        )
    return rows + [replace(blank, name=name, told=reason) for name, reason in told.items()]


def _too_large(needed: int) -> str:
    return f"needs {needed / 1e9:.1f} GB, and {available_bytes() / 1e9:.1f} GB are free"


def _examined(
    run: Callable[[], list[Tensor]], right: Oracle, grads: list[Tensor], device: torch.device
) -> tuple[Observed, float]:
    """What a run does and how far off it is; raises an error where that is too far.

    Or where it takes too long to be measured again and again.
    """
    begin = time.perf_counter()
    direction = run()
    wait(device.type)
    once = time.perf_counter() - begin
    error = right.error(direction, grads)
    if not error <= right.tolerance:
        raise ArithmeticError(
            f"wrong by {error:.1e}, more than {right.tolerance:.1e}: it gets no time"
        )
    if once > PATIENCE:
        raise TimeoutError(f"right, and {once:.1f} s for one run: too slow to take turns")
    return observe(run, device), error
