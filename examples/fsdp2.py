"""FSDP2: the demo's MultiMNIST with its parameters sharded, and the numbers of one process.

    torchrun --nproc-per-node 2 -m examples.fsdp2
    python -m examples.fsdp2    # one process with the whole batch: the same losses

Each process holds a piece of every parameter, of every task's gradient and of the optimizer's
state, and takes its part of every batch. The optimizer is made after fully_shard. Needs the demo's
packages: pip install "mtlkernels[demo]".
"""

from __future__ import annotations

import argparse
import gc
import os

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import fully_shard

from examples.demo.multimnist import multimnist_problem
from mtlkernels import MTLOptimizer, PCGrad


def train(steps: int, device: torch.device) -> Tensor:
    """Trains for some steps; the losses of each, (steps, 2), over all processes."""
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    problem = multimnist_problem(device)
    torch.manual_seed(0)
    model = problem.build().to(device)
    if dist.is_initialized():
        for part in (model.encoder, *model.heads.values()):
            fully_shard(part)
        fully_shard(model)
    base = torch.optim.AdamW(model.parameters(), lr=problem.rate)
    optimizer = MTLOptimizer(base, PCGrad(), module=model if dist.is_initialized() else None)

    generator = torch.Generator().manual_seed(1)
    found = []
    for _ in range(steps):
        batch = problem.sample(generator)  # the same on all processes, which take a part each
        predictions = model(batch.inputs.chunk(world)[rank])
        targets = {name: target.chunk(world)[rank] for name, target in batch.targets.items()}
        losses = {t.name: t.loss(predictions[t.name], targets[t.name]) for t in problem.tasks}
        optimizer.zero_grad()
        report = optimizer.backward(losses)
        optimizer.step()
        assert report.losses is not None  # every step from losses reports them
        found.append(report.losses)
    return torch.stack(found).cpu()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=40)
    steps = parser.parse_args().steps
    local = int(os.environ.get("LOCAL_RANK", 0))
    device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
    if "WORLD_SIZE" in os.environ:  # torchrun's
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    losses = train(steps, device)
    if not dist.is_initialized() or dist.get_rank() == 0:
        for step in range(0, steps, max(1, steps // 8)):
            print(f"step {step:3}  left {losses[step, 0]:.5f}  right {losses[step, 1]:.5f}")
        print(f"step {steps - 1:3}  left {losses[-1, 0]:.5f}  right {losses[-1, 1]:.5f}")
    if dist.is_initialized():
        gc.collect()  # cycles hold the group, whose threads must end before Python does
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
