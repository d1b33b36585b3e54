"""One rank hangs, or ends, in the middle of a step; the other has to say so, with nothing written.

In a process group of its own, which does not survive it.
"""

from __future__ import annotations

import copy
import os
from datetime import timedelta

import torch
import torch.distributed as dist
from dist_models import batches, ddp, fresh, own, sgd, told

from mtlkernels import MTLOptimizer, PCGrad

WORLDS = (2,)


def check_a_rank_hangs() -> None:
    """The others wait as long as their group says, in a group of its own that does not survive."""
    group = dist.new_group(timeout=timedelta(seconds=5))
    model = fresh()
    optimizer = MTLOptimizer(sgd(model), PCGrad(), process_group=group)
    if dist.get_rank() == 0:
        losses = model(own(batches(1)[0]))
        told(RuntimeError, "agreeing on a step failed", lambda: optimizer.backward(losses))
        assert all(param.grad is None for param in model.parameters())
    dist.barrier()


def check_a_rank_dies() -> None:
    model = fresh()
    run, optimizer = ddp(model, PCGrad())
    first, second = batches(2)
    optimizer.backward(run(own(first)))
    optimizer.step()
    optimizer.zero_grad()
    losses = run(own(second))
    if dist.get_rank() == 1:
        # In the second backward, when rank 0 waits for the first task's reduction.
        losses[1].register_hook(lambda grad: os._exit(1))
    before = copy.deepcopy(optimizer.state_dict())
    told(RuntimeError, "No .grad has been written", lambda: optimizer.backward(losses))
    assert all(param.grad is None for param in model.parameters())
    for key, state in before["state"].items():
        mine = optimizer.state_dict()["state"][key]["momentum_buffer"]
        assert torch.equal(state["momentum_buffer"], mine)
