"""The first-step self-check over ranks: all of them raise, and none of them waits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from broken_layers import CHANGING, WRITING, Net
from dist_harness import DEVICE
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)
from torch.nn.parallel import DistributedDataParallel

from benchmarks.traffic import Traffic
from mtlkernels import GradDrop, MTLOptimizer
from mtlkernels.autograd.trial import SelfCheckError

WORLDS = (2,)


def _batch() -> Tensor:
    generator = torch.Generator("cpu").manual_seed(dist.get_rank())
    return torch.randn(8, 4, generator=generator, device="cpu").to(DEVICE)


def _wrapped(net: nn.Module, method: Any = "pcgrad", **options: Any) -> MTLOptimizer:
    return MTLOptimizer(torch.optim.SGD(net.named_parameters(), lr=0.1), method, **options)


def check_replicas_raise_together() -> None:
    for middle in (WRITING["a backward inside"], *CHANGING.values()):
        for method, options in (
            ("pcgrad", {}),
            (GradDrop(), {}),
        ):
            net = Net(middle).to(DEVICE)
            optimizer = _wrapped(net, method, process_group=dist.group.WORLD, **options)
            with pytest.raises(SelfCheckError, match=r"first|second"):
                optimizer.backward(net(_batch()))
            with pytest.raises(SelfCheckError, match=r"first|second"):
                optimizer.backward(net(_batch()), accumulate=True)
            assert all(param.grad is None for param in net.parameters())


def check_one_rank_alone_has_the_fault() -> None:
    broken = dist.get_rank() == 1
    for middle in (WRITING["a backward inside"], CHANGING["overwritten"]):
        net = Net(middle if broken else None).to(DEVICE)
        ddp = DistributedDataParallel(net)
        optimizer = _wrapped(net, module=ddp)
        sentence = "second" if broken else "another rank found"
        with pytest.raises(SelfCheckError, match=sentence):
            optimizer.backward(ddp(_batch()))
        assert all(param.grad is None for param in net.parameters())


def check_a_rank_without_data_for_a_task() -> None:
    net = Net().to(DEVICE)
    optimizer = _wrapped(net, module=DistributedDataParallel(net))
    for _ in range(3):
        losses: list[Tensor | None] = list(net(_batch()))
        losses[dist.get_rank()] = None
        optimizer.backward(losses)


def check_sound_models_pass_and_later_steps_cost_nothing() -> None:
    sent, found = [], []
    for check in (True, False):
        net = Net().to(DEVICE)
        optimizer = _wrapped(net, process_group=dist.group.WORLD, check=check)
        steps = []
        for _ in range(3):
            with Traffic() as traffic:
                optimizer.backward(net(_batch()))
            steps.append(traffic.sent)
        sent.append(steps)
        found.append([param.grad for param in net.parameters()])
    assert sent[0][1:] == sent[1][1:]
    torch.testing.assert_close(*found, rtol=0, atol=0)


def check_fully_shard() -> None:
    hook = CHANGING["a hook that removes itself"]
    for middle in (None, CHANGING["overwritten"], hook):
        net = Net(middle).to(DEVICE)
        for layer in (net.first, net.third, *net.heads):
            fully_shard(layer)
        optimizer = _wrapped(fully_shard(net), module=net)
        if middle is None:
            optimizer.backward(net(_batch()))
            continue
        with pytest.raises(SelfCheckError, match=r"do not add up.*first|another rank found"):
            optimizer.backward(net(_batch()))
        assert all(param.grad is None for param in net.parameters())


def check_tensor_parallelism() -> None:
    mesh = init_device_mesh(DEVICE, (dist.get_world_size(),))
    for broken in (False, True):
        net = Net(CHANGING["overwritten"] if broken else None).to(DEVICE)
        plan = {"first": ColwiseParallel(), "second": RowwiseParallel()}
        net = parallelize_module(net, mesh, plan)
        optimizer = _wrapped(net, module=net)
        batch = torch.ones(8, 4, device=DEVICE)
        if not broken:
            optimizer.backward(net(batch))
            continue
        with pytest.raises(SelfCheckError, match=r"do not add up.*first"):
            optimizer.backward(net(batch))
