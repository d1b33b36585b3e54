"""Arithmetic, not measurement: what each route costs from 8 to 1024 GPUs. Prints a table.

    python -m benchmarks.arithmetic.cluster [--numbers 303.3e6] [--tasks 4] [--backward 60] ...

A step is simulated as two queues, one of compute and one of the network. Collectives are rings:
W - 1 of W parts of the bytes at a link's bandwidth for a reduce-scatter or an all-gather, twice
that for an all-reduce, and a latency a stage of a tree. Up to eight GPUs the link is the one inside
a machine, beyond it the network card of each GPU.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass

GPUS = (8, 64, 256, 1024)


@dataclass(frozen=True)
class Job:
    """A model and a machine.

    Attributes:
        numbers: N, shared parameters, in float32.
        tasks: T.
        forward, backward: milliseconds; a backward is that of one loss through the trunk.
        heads: milliseconds of all heads' backwards down to the features.
        inside, outside: bytes a second of a link within a machine, and of a GPU's network card.
        latency: milliseconds a stage of a collective.
    """

    numbers: float = 303.3e6
    tasks: int = 4
    forward: float = 30.0
    backward: float = 60.0
    heads: float = 3.0
    inside: float = 400e9
    outside: float = 50e9
    latency: float = 0.02

    def scatter(self, size: float, gpus: int) -> float:
        """Milliseconds of a reduce-scatter, or an all-gather, of `size` bytes."""
        bandwidth = self.inside if gpus <= 8 else self.outside
        share = (gpus - 1) / gpus
        return 1e3 * size * share / bandwidth + self.latency * math.log2(gpus)

    @property
    def size(self) -> float:
        """Bytes of N float32 numbers."""
        return 4 * self.numbers


@dataclass(frozen=True)
class Cost:
    """A step's milliseconds, those of them that wait for the network, and GiB of rows."""

    step: float
    exposed: float
    memory: float


def ddp(job: Job, gpus: int) -> Cost:
    """One backward of the sum; buckets are reduced while it runs, the last of 16 after it."""
    reduction = 2 * job.scatter(job.size, gpus)
    exposed = max(reduction - job.backward * 15 / 16, reduction / 16)
    return _cost(job, job.backward, exposed, 0)


def all_reduced_rows(job: Job, gpus: int) -> Cost:
    """Each row all-reduced behind its backward; all T on each GPU."""
    reduction = 2 * job.scatter(job.size, gpus)
    return _rows(job, [reduction] * job.tasks, [], job.tasks * job.size)


def rows(job: Job, gpus: int, bytes_a_number: int = 4) -> Cost:
    """What `module=ddp` does."""
    part = bytes_a_number / 4
    reduction = job.scatter(job.size * part, gpus)
    memory = (job.tasks / gpus + 2) * job.size * part + job.size
    after = [_small(job, gpus), job.scatter(job.size, gpus)]
    return _rows(job, [reduction] * job.tasks, after, memory)


def fsdp2(job: Job, gpus: int) -> Cost:
    """What `module=` does with fully_shard: all-gathers for forward and backward, no direction."""
    gather = job.scatter(job.size, gpus)
    own = _rows(job, [gather] * job.tasks, [_small(job, gpus)], job.tasks / gpus * job.size)
    wait = max(0.0, gather - job.forward) + max(0.0, gather - job.backward)
    return Cost(own.step + wait, own.exposed + wait, own.memory)


def features(job: Job, gpus: int) -> Cost:
    """T backwards to the features, one of the weighted sum, one all-reduce after it."""
    exposed = 2 * job.scatter(job.size, gpus) + _small(job, gpus)
    return _cost(job, job.heads + job.backward, exposed, 0)


def every_tenth(job: Job, gpus: int) -> Cost:
    """Rows in one step of ten, in the others one backward and one all-reduce after it."""
    full, kept = rows(job, gpus), _cost(job, job.backward, 2 * job.scatter(job.size, gpus), 0)
    mean = [(a + 9 * b) / 10 for a, b in ((full.step, kept.step), (full.exposed, kept.exposed))]
    return Cost(mean[0], mean[1], full.memory)


def _rows(job: Job, reductions: list[float], after: list[float], memory: float) -> Cost:
    """T backwards; a task's reduction runs behind its backward and the reduction before it."""
    network = 0.0
    for task, reduction in enumerate(reductions):
        network = max(network, (task + 1) * job.backward) + reduction
    compute = len(reductions) * job.backward
    return _cost(job, compute, network + sum(after) - compute, memory)


def _small(job: Job, gpus: int) -> float:
    """K and losses, a few hundred bytes: latency alone."""
    return 2 * job.latency * math.log2(gpus)


def _cost(job: Job, backwards: float, exposed: float, memory: float) -> Cost:
    return Cost(job.forward + backwards + exposed, exposed, memory / 2**30)


ROUTES: dict[str, tuple[Callable[[Job], str], Callable[[Job, int], Cost]]] = {
    "DDP, sum of losses": (lambda job: "1", ddp),
    "all-reduce T rows": (lambda job: f"{job.tasks}", all_reduced_rows),
    "rows": (lambda job: f"{(job.tasks + 1) / 2:.1f}", rows),
    "rows in bfloat16": (
        lambda job: f"{(job.tasks / 2 + 1) / 2:.1f}",
        lambda job, gpus: rows(job, gpus, 2),
    ),
    "FSDP2, rows": (lambda job: f"{(job.tasks + 2) / 2:.1f}", fsdp2),
    "every=10": (lambda job: f"{(9 + (job.tasks + 1) / 2) / 10:.2f}", every_tenth),
    "features": (lambda job: "1", features),
}


def table(job: Job) -> str:
    """Markdown, a route a row: milliseconds (of them exposed network), GiB of rows, by GPUs."""
    head = "| route | traffic | " + " | ".join(f"{gpus} GPUs" for gpus in GPUS) + " |"
    lines = [head, "|---" * (2 + len(GPUS)) + "|"]
    for name, (traffic, cost) in ROUTES.items():
        cells = []
        for gpus in GPUS:
            found = cost(job, gpus)
            cells.append(f"{found.step:.0f} ({found.exposed:.0f}), {found.memory:.2f}")
        lines.append(f"| {name} | {traffic(job)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, field in Job.__dataclass_fields__.items():
        kind = int if name == "tasks" else float
        parser.add_argument(f"--{name}", type=kind, default=field.default)
    print(table(Job(**vars(parser.parse_args()))))


if __name__ == "__main__":
    main()
