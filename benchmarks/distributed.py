"""Several processes on gloo: bytes, collectives and time of each route, beside plain DDP.

    python -m benchmarks.distributed [--ranks 2,4] [--tasks 4] [--width 512] [--seconds 3]

"x DDP" is the bytes that a rank sends over those of DistributedDataParallel for the sum of the
losses. "all-reduce T rows" is what one would write by hand: `autograd.grad` for each loss, each row
all-reduced, `mtlkernels.aggregate` on the result. Time is a step's, median of rounds in which all
routes take turns; gloo on one machine says little about NCCL, the other columns hold anywhere.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

import mtlkernels
from benchmarks.suite.timing import quartiles
from benchmarks.traffic import Traffic
from mtlkernels import SI, MTLOptimizer, UPGrad

Step = Callable[[], object]


class Model(nn.Module):
    """A trunk of three square layers and a small head a task."""

    def __init__(self, tasks: int, width: int) -> None:
        super().__init__()
        layers = [module for _ in range(3) for module in (nn.Linear(width, width), nn.Tanh())]
        self.trunk = nn.Sequential(*layers)
        self.heads = nn.ModuleList(nn.Linear(width, 1) for _ in range(tasks))

    def forward(self, x: Tensor) -> list[Tensor]:
        return self.losses(self.trunk(x))

    def losses(self, z: Tensor) -> list[Tensor]:
        return [(head(z) - t).square().mean() for t, head in enumerate(self.heads)]


def routes(tasks: int, width: int) -> dict[str, Step]:
    """Name -> a forward and the backwards of one step, up to .grad on every rank."""
    x = torch.randn(16, width, generator=torch.Generator().manual_seed(dist.get_rank()))

    def model() -> Model:
        torch.manual_seed(0)
        return Model(tasks, width)

    def ours(own: Model, run: nn.Module, method: object, **options: object) -> Step:
        base = torch.optim.SGD(own.parameters(), lr=0.1)
        optimizer = MTLOptimizer(base, method, module=run, **options)

        def step() -> None:
            optimizer.zero_grad()
            optimizer.backward(run(x))

        return step

    def replicas(method: object, **options: object) -> Step:
        own = model()
        return ours(own, DistributedDataParallel(own), method, **options)

    def shards() -> Model:
        own = model()
        for layer in [m for m in own.trunk if isinstance(m, nn.Linear)]:
            fully_shard(layer)
        fully_shard(own)
        return own

    def summed(run: nn.Module) -> Step:
        def step() -> None:
            run.zero_grad()
            torch.autograd.backward(sum(run(x)))

        return step

    sharded = shards()
    return {
        "DDP, sum of losses": summed(DistributedDataParallel(model())),
        "all-reduce T rows": by_hand(model(), x),
        "rows (default)": replicas(UPGrad()),
        "rows in bfloat16": replicas(UPGrad(), rows_dtype=torch.bfloat16),
        "features": by_features(model(), x),
        "every=10": replicas(UPGrad(), every=10),
        "a loss method": replicas(SI()),
        "FSDP2, sum of losses": summed(shards()),
        "FSDP2, rows": ours(sharded, sharded, UPGrad()),
    }


def by_hand(model: Model, x: Tensor) -> Step:
    params = list(model.parameters())
    method = UPGrad()

    def step() -> None:
        rows: list[list[Tensor | None]] = []
        losses = model(x)
        for t, loss in enumerate(losses):
            grads = torch.autograd.grad(
                loss, params, retain_graph=t < len(losses) - 1, allow_unused=True
            )
            there = [grad for grad in grads if grad is not None]
            flat = torch.cat([grad.flatten() for grad in there]) / dist.get_world_size()
            dist.all_reduce(flat)
            pieces = iter(flat.split([grad.numel() for grad in there]))
            rows.append([None if g is None else next(pieces).view(g.shape) for g in grads])
        direction, _ = mtlkernels.aggregate(rows, method, params=params)
        for param, grad in zip(params, direction, strict=True):
            param.grad = grad

    return step


def by_features(model: Model, x: Tensor) -> Step:
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = MTLOptimizer(base, UPGrad(), process_group=dist.group.WORLD)

    def step() -> None:
        optimizer.zero_grad()
        z = model.trunk(x)
        optimizer.backward(model.losses(z), features=z)

    return step


def counted(step: Step, steps: int) -> tuple[float, str]:
    """Bytes a rank sends a step, on average of some, and the large collectives of the last."""
    sent = 0.0
    for _ in range(steps):
        traffic = Traffic()
        with traffic:
            step()
        sent += traffic.sent
    told = ", ".join(f"{n} {kind}" for kind, n in sorted(traffic.calls.items()))
    return sent / steps, told


def run(rank: int, ranks: int, arguments: argparse.Namespace, store: str) -> None:
    """One process."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=store, rank=rank, world_size=ranks, timeout=timedelta(seconds=120)
    )
    measure(rank, ranks, arguments)
    dist.barrier()
    gc.collect()  # cycles hold the group, whose threads must end before Python does
    dist.destroy_process_group()


def measure(rank: int, ranks: int, arguments: argparse.Namespace) -> None:
    """One rank's part; rank 0 prints."""
    steps = routes(arguments.tasks, arguments.width)
    for step in steps.values():
        step()
    found = {name: counted(step, 10) for name, step in steps.items()}
    # Rank 0's clock decides for all, which have to take as many steps.
    rounds = torch.tensor(0)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    start = timed(lambda: [step() for step in steps.values()])
    rounds.fill_(max(5, int(arguments.seconds / start)))
    dist.broadcast(rounds, 0)
    for _ in range(int(rounds)):
        for name, step in steps.items():
            seconds[name].append(timed(step))
    if rank == 0:
        numbers = sum(p.numel() for p in Model(arguments.tasks, arguments.width).parameters())
        print(
            f"\n{ranks} ranks, {arguments.tasks} tasks, {numbers / 1e6:.2f} M parameters, float32"
        )
        print(f"{'':22} {'MB sent':>8} {'x DDP':>6} {'ms':>7} {'quartiles':>15}  collectives")
        unit = found["DDP, sum of losses"][0]
        for name, (sent, told) in found.items():
            low, middle, high = (1e3 * s for s in quartiles(seconds[name]))
            print(
                f"{name:22} {sent / 1e6:8.2f} {sent / unit:6.2f} {middle:7.1f} "
                f"{low:7.1f}-{high:7.1f}  {told}"
            )


def timed(step: Step) -> float:
    """Seconds of a step, all ranks starting together."""
    dist.barrier()
    begin = time.perf_counter()
    step()
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", default="2,4")
    parser.add_argument("--tasks", type=int, default=4)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--seconds", type=float, default=3.0)
    arguments = parser.parse_args()
    for ranks in map(int, arguments.ranks.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            store = f"file://{Path(folder) / 'store'}"
            spawn(run, (ranks, arguments, store), ranks)


if __name__ == "__main__":
    main()
