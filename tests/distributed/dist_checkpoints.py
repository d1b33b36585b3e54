"""Checkpoints: two ranks save, four load and go on as one process does."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch.distributed.checkpoint as dcp
from dist_harness import alone, folder, only
from dist_models import (
    batches,
    follow,
    fresh,
    own,
    reference,
    sgd,
)
from dist_sharded import Heads, Losses, losses, sharded
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from mtlkernels import (
    AvgNorm,
    MTLOptimizer,
)

WORLDS = (2, 4)


def _trained(steps: int) -> tuple[nn.Module, MTLOptimizer, Sequence[Tensor]]:
    model = sharded()
    optimizer = MTLOptimizer(sgd(model), AvgNorm("max"), module=model)
    data = batches(4)
    for batch in data[:steps]:
        optimizer.backward(losses(model, own(batch)))
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer, data


def _states(model: nn.Module, optimizer: MTLOptimizer) -> dict[str, Any]:
    return {
        "model": get_model_state_dict(model),
        "optimizer": get_optimizer_state_dict(model, optimizer),
    }


@only(2)
def check_save_on_two() -> None:
    model, optimizer, _ = _trained(2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own
        dcp.save(_states(model, optimizer), checkpoint_id=str(folder() / "saved"))


@only(4)
def check_load_on_four() -> None:
    model, optimizer, data = _trained(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        states = _states(model, optimizer)
        dcp.load(states, checkpoint_id=str(folder() / "saved"))
        set_model_state_dict(model, states["model"])
        set_optimizer_state_dict(model, optimizer, optim_state_dict=states["optimizer"])
    expected = fresh(Heads)
    plain = reference(expected, AvgNorm("max"))
    with alone():
        for batch in data[:2]:
            plain.backward(losses(expected, batch))
            plain.step()
            plain.zero_grad()
    run = Losses(expected, losses)
    follow(model, lambda x: losses(model, x), optimizer, run, plain, data[2:])
