"""Scenarios of tensor parallelism: one batch for all ranks of a group, a trunk cut in two."""

from __future__ import annotations

import copy

import torch
import torch.distributed as dist
from dist_harness import DEVICE, alone, only
from dist_models import (
    batches,
    follow,
    fresh,
    reference,
    same_params,
    told,
)
from dist_sharded import Losses, Wide, cut, losses, of_replica, same_batch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from mtlkernels import (
    SI,
    MTLOptimizer,
    PCGrad,
    UPGrad,
)

WORLDS = (2, 4)


@only(2)
def check_tensor_parallel() -> None:
    """With a bias that is replicated, and heads and a LayerNorm that are no DTensors at all."""
    mesh = init_device_mesh(DEVICE, (dist.get_world_size(),), mesh_dim_names=("tp",))
    for method, options in ((UPGrad(), {}), (PCGrad(), {"weight_heads": True}), (SI(), {})):
        model = cut(fresh(Wide), mesh)
        assert model.trunk[2].bias.placements == (Replicate(),)
        assert model.trunk[0].weight.placements == (Shard(0),)
        assert not isinstance(model.trunk[3].weight, DTensor)
        part = same_batch
        base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, foreach=False)
        expected = fresh(Wide)
        optimizer = MTLOptimizer(base, copy.deepcopy(method), module=model, **options)
        plain = reference(expected, method, **options)
        run = Losses(expected, losses)
        follow(model, lambda x, m=model: losses(m, x), optimizer, run, plain, batches(), part)


@only(2)
def check_float32_to_its_rounding() -> None:
    mesh = init_device_mesh(DEVICE, (dist.get_world_size(),))
    model, expected = cut(fresh(Wide, torch.float32), mesh), fresh(Wide, torch.float32)
    base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, foreach=False)
    optimizer = MTLOptimizer(base, UPGrad(), module=model)
    plain, run = reference(expected, UPGrad()), Losses(expected, losses)
    data, bounds = batches(dtype=torch.float32), {"rtol": 1e-6, "atol": 1e-6}
    follow(model, lambda x: losses(model, x), optimizer, run, plain, data, same_batch, **bounds)


class Matrix(nn.Module):
    """One matrix of DTensors, replicated; its gradient over a batch cut into pieces is a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.linspace(-1, 1, 15).view(5, 3))

    def forward(self, x: Tensor) -> list[Tensor]:
        y = x @ self.w
        return [(y - 1).square().mean(), (y + 2).square().mean(), y.square().sum()]


@only(2)
def check_pending_sums_are_reduced_first() -> None:
    """Gradients that are Partial, of losses that are DTensors."""
    mesh = init_device_mesh(DEVICE, (dist.get_world_size(),))
    model, expected = fresh(Matrix), fresh(Matrix)
    model.w = nn.Parameter(distribute_tensor(model.w.detach(), mesh, [Replicate()]))
    (grad,) = torch.autograd.grad(model(_cut_batch(batches(1)[0], mesh))[0], [model.w])
    assert grad.placements[0].is_partial()
    base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    optimizer = MTLOptimizer(base, UPGrad(), module=model)
    plain = reference(expected, UPGrad())

    def run(x: Tensor) -> list[Tensor]:
        return model(_cut_batch(x, mesh))

    follow(model, run, optimizer, expected, plain, batches(), same_batch)
    (batch,) = batches(1)
    run(batch)[0].backward()
    expected(batch)[0].backward()
    assert model.w.grad.placements[0].is_partial()
    optimizer.backward(run(batch))  # adds to what is there
    with alone():
        plain.backward(expected(batch))
    same_params(model, expected)


def _cut_batch(batch: Tensor, mesh: DeviceMesh) -> DTensor:
    return distribute_tensor(batch, mesh, [Shard(0)])


@only(4)
def check_tensor_parallel_times_fsdp2() -> None:
    mesh = init_device_mesh(DEVICE, (2, 2), mesh_dim_names=("dp", "tp"))
    model = fully_shard(cut(fresh(Wide), mesh["tp"]), mesh=mesh["dp"])
    meshes = {param.device_mesh.ndim for param in model.parameters()}
    assert meshes == {1, 2}
    expected = fresh(Wide)
    base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, foreach=False)
    optimizer = MTLOptimizer(base, UPGrad(), module=model)
    plain, run = reference(expected, UPGrad()), Losses(expected, losses)
    follow(model, lambda x: losses(model, x), optimizer, run, plain, batches(), of_replica)
    z = model(batches(1)[0])[0]
    mine = [z.square().sum(), z.sum()]
    told(NotImplementedError, "samples of its own", lambda: optimizer.backward(mine, features=z))


@only(4)
def check_tensor_parallel_times_replicas() -> None:
    mesh = init_device_mesh(DEVICE, (2, 2), mesh_dim_names=("dp", "tp"))
    for method, options in (
        (UPGrad(), {}),
        (PCGrad(), {"weight_heads": True, "check_ranks": True}),
        (SI(), {}),
    ):
        model, expected = cut(fresh(Wide), mesh["tp"]), fresh(Wide)
        base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, foreach=False)
        group = mesh["dp"].get_group()
        optimizer = MTLOptimizer(
            base, copy.deepcopy(method), module=model, process_group=group, **options
        )
        options.pop("check_ranks", None)
        plain, run = reference(expected, method, **options), Losses(expected, losses)
        follow(model, lambda x, m=model: losses(m, x), optimizer, run, plain, batches(), of_replica)
