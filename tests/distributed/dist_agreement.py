"""Scenarios of ranks that draw, weigh or are set up alike, and of some that are not."""

from __future__ import annotations

import torch
import torch.distributed as dist
from dist_harness import only
from dist_models import (
    Model,
    batches,
    ddp,
    everywhere,
    fresh,
    own,
    sgd,
    told,
)
from dist_sharded import losses, sharded
from torch import Tensor

import mtlkernels
from mtlkernels import (
    MTLOptimizer,
    PCGrad,
    UPGrad,
)

WORLDS = (2, 4)


class Drifting(mtlkernels.GramMethod):
    """Draws from a generator of its own: not the same on all ranks."""

    def forward(self, gram: Tensor, losses: Tensor | None = None) -> Tensor:
        shift = float(dist.get_rank() == 1)
        return torch.ones(len(gram), dtype=torch.float64) + shift


def check_a_rank_with_other_weights_is_named() -> None:
    model = fresh()
    run, optimizer = ddp(model, Drifting(), check_ranks=True)
    told(RuntimeError, "rank 1 has [2.0", lambda: optimizer.backward(run(own(batches(1)[0]))))
    assert all(param.grad is None for param in model.parameters())
    run, optimizer = ddp(model, UPGrad(), check_ranks=True)
    optimizer.backward(run(own(batches(1)[0])))


def check_what_differs_at_the_first_step_is_told() -> None:
    (batch,) = batches(1)
    rank = dist.get_rank()
    model = fresh()
    run, optimizer = ddp(model, PCGrad(seed=rank))
    told(ValueError, "a seed for example", lambda: optimizer.backward(run(own(batch))))
    run, optimizer = ddp(model, PCGrad(), weight_heads=rank == 0)
    told(ValueError, "its options", lambda: optimizer.backward(run(own(batch))))
    run, optimizer = ddp(model, PCGrad())
    names = ["a", "b", "c"] if rank == 0 else ["a", "c", "b"]
    told(
        ValueError,
        "in its losses",
        lambda: optimizer.backward(dict(zip(names, run(own(batch)), strict=True))),
    )
    own_params = fresh() if rank == 0 else fresh(lambda: Model(4))
    optimizer = MTLOptimizer(sgd(own_params), PCGrad(), process_group=dist.group.WORLD)
    told(ValueError, "the same model", lambda: optimizer.backward(own_params(own(batch))[:3]))
    assert all(param.grad is None for param in model.parameters())


@only(2)
def check_draws_are_the_same_everywhere() -> None:
    model = fresh()
    run, optimizer = ddp(model, mtlkernels.RandomWeights(seed=4))
    for batch in batches():
        weights = optimizer.backward(run(own(batch))).weights
        assert all(torch.equal(weights, other) for other in everywhere(weights))
        optimizer.zero_grad()


@only(2)
def check_seeds_that_differ_are_told() -> None:
    model = sharded()
    optimizer = MTLOptimizer(sgd(model), PCGrad(seed=dist.get_rank()), module=model)
    mine = losses(model, own(batches(1)[0]))
    told(ValueError, "a seed for example", lambda: optimizer.backward(mine))
    assert all(param.grad is None for param in model.parameters())


@only(1, 2, 4)
def check_weights_are_the_same_everywhere() -> None:
    model = sharded()
    optimizer = MTLOptimizer(sgd(model), PCGrad(), module=model, check_ranks=True)
    weights = optimizer.backward(losses(model, own(batches(1)[0]))).weights
    assert all(torch.equal(weights, other) for other in everywhere(weights))
