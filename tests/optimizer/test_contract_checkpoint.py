"""The optimizer contract: torch.distributed.checkpoint keeps the state of the method."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch.distributed.checkpoint as dcp
from contract import (
    KINDS,
    Net,
    assert_same,
    assert_same_state,
    batches,
    pair,
    train,
)
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from mtlkernels import MTLOptimizer

pytestmark = pytest.mark.usefixtures("one_thread")

BEFORE, AFTER = batches(3), batches(3, seed=2)

OPTIONS = {
    "plain": StateDictOptions(),
    "flat": StateDictOptions(flatten_optimizer_state_dict=True),
    "full": StateDictOptions(full_state_dict=True, cpu_offload=True),
}


def pair_to_checkpoint(name: str, seed: int = 0) -> tuple[Net, MTLOptimizer]:
    """With its unused part frozen: torch wants a state for each parameter that is trained."""
    model, optimizer = pair("adamw", KINDS[name](), seed=seed)
    model.unused.requires_grad_(False)
    return model, optimizer


def checkpoint(model: Net, optimizer: MTLOptimizer, options: StateDictOptions) -> dict[str, Any]:
    state = get_optimizer_state_dict(named(model, optimizer), optimizer, options=options)
    return {"model": model.state_dict(), "optimizer": state}


def named(model: Net, optimizer: MTLOptimizer) -> nn.Module:
    """The module by which torch names the optimizer's parameters, the method's own among them."""
    return nn.ModuleDict({"model": model, "method": optimizer.method})


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("disk", [False, True], ids=["memory", "disk"])
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled, unavailable or uninitialized")
def test_distributed_checkpoints_keep_the_state_of_the_method(
    name: str, options: str, disk: bool, tmp_path: Path
) -> None:
    chosen = OPTIONS[options]
    model, optimizer = pair_to_checkpoint(name)
    train(model, optimizer, BEFORE)
    saved = copy.deepcopy(checkpoint(model, optimizer, chosen))
    fresh, other = pair_to_checkpoint(name, seed=5)
    if disk:
        dcp.save(saved, checkpoint_id=tmp_path)
        if name == "MoCo":
            train(fresh, other, BEFORE[:1])  # torch reads tensors only into those that are there
        saved = checkpoint(fresh, other, chosen)
        dcp.load(saved, checkpoint_id=tmp_path)
    fresh.load_state_dict(saved["model"])
    set_optimizer_state_dict(named(fresh, other), other, saved["optimizer"], options=chosen)
    assert_same_state(optimizer.method, other.method)
    train(model, optimizer, AFTER)
    train(fresh, other, AFTER)
    assert_same(model, fresh)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled, unavailable or uninitialized")
def test_rows_that_a_checkpoint_could_not_restore_are_told(tmp_path: Path) -> None:
    model, optimizer = pair_to_checkpoint("MoCo")
    train(model, optimizer, BEFORE)
    dcp.save(checkpoint(model, optimizer, OPTIONS["plain"]), checkpoint_id=tmp_path)
    fresh, other = pair_to_checkpoint("MoCo", seed=5)
    loaded = checkpoint(fresh, other, OPTIONS["plain"])
    dcp.load(loaded, checkpoint_id=tmp_path)
    with pytest.raises(
        ValueError, match=r"lacks rows_0 of MoCo: nothing was loaded.*training step"
    ):
        set_optimizer_state_dict(named(fresh, other), other, loaded["optimizer"])
    assert int(other.method.step) == 0
