"""What is refused, and with which sentence."""

from __future__ import annotations

import pickle
import warnings
from typing import Any

import torch
import torch.distributed as dist
from dist_harness import DEVICE, only
from dist_models import (
    Model,
    batches,
    fresh,
    own,
    sgd,
    told,
)
from dist_sharded import losses, sharded
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import DTensor, Partial, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import mtlkernels
from mtlkernels import (
    SI,
    GradDrop,
    MTLOptimizer,
    Splitter,
    UPGrad,
)

WORLDS = (2,)


@only(2)
def check_of_replicas() -> None:
    model = fresh()
    (batch,) = batches(1)
    told(
        NotImplementedError,
        "module=model",
        lambda: MTLOptimizer(sgd(model), UPGrad()).backward(model(own(batch))),
    )
    told(
        NotImplementedError,
        "process_group= for replicas",
        lambda: mtlkernels.backward(model(own(batch)), list(model.parameters()), UPGrad()),
    )

    def wrap(module: nn.Module, **options: Any) -> MTLOptimizer:
        return MTLOptimizer(sgd(model), UPGrad(), module=module, **options)

    told(
        NotImplementedError,
        "static_graph=True",
        lambda: wrap(DistributedDataParallel(model, static_graph=True)),
    )
    told(
        NotImplementedError,
        "find_unused_parameters=True",
        lambda: wrap(DistributedDataParallel(model, find_unused_parameters=True)),
    )
    told(ValueError, "say how ranks share them", lambda: wrap(model))
    run = DistributedDataParallel(model)
    model.features = lambda x: checkpoint(model.trunk, x, use_reentrant=True)
    for options in ({}, {"accumulate": True}):
        reached = model(own(batch).requires_grad_())
        told(
            ValueError,
            "use_reentrant=False",
            lambda reached=reached, options=options: wrap(run).backward(reached, **options),
        )
    del model.features
    copies = Splitter(UPGrad(), 2)(model.features(own(batch)))
    split = sum(copy.square().sum() for copy in copies)
    told(NotImplementedError, "features of one rank", split.backward)
    told(ValueError, "of its own", lambda: wrap(run, process_group=dist.group.WORLD))
    told(ValueError, "below it", lambda: wrap(nn.Sequential(run)))
    told(NotImplementedError, "stores no task gradients", lambda: wrap(run, apply="backward"))
    told(
        ValueError,
        "applies to several ranks",
        lambda: MTLOptimizer(sgd(model), UPGrad(), check_ranks=True),
    )
    optimizer = wrap(run)
    with run.join():
        run._join_config = run._join_config._replace(enable=True)
        losses = [loss.sum() for loss in model(own(batch))]
        told(NotImplementedError, "join()", lambda: optimizer.backward(losses))
    told(TypeError, "save its state_dict()", lambda: pickle.dumps(optimizer))


@only(2)
def check_fsdp1_is_refused() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = FullyShardedDataParallel(fresh(), device_id=torch.device(DEVICE))
    told(
        NotImplementedError,
        "fully_shard, its successor",
        lambda: MTLOptimizer(sgd(model), UPGrad(), module=model),
    )


@only(2)
def check_of_shards() -> None:
    model = sharded()
    mine = losses(model, own(batches(1)[0]))
    told(
        NotImplementedError,
        "module=model",
        lambda: MTLOptimizer(sgd(model), UPGrad()).backward(mine),
    )

    def wrap(method: Any = None, **options: Any) -> MTLOptimizer:
        return MTLOptimizer(sgd(model), method or UPGrad(), module=model, **options)

    told(NotImplementedError, "whole gradients", lambda: wrap(GradDrop()))
    told(NotImplementedError, "say weight_heads=True", lambda: wrap(every=2))
    for options in ({"collect": "batched"}, {"apply": "backward"}):
        told(NotImplementedError, "plain tensors", lambda options=options: wrap(**options))
    told(NotImplementedError, "MixedPrecisionPolicy", lambda: wrap(rows_dtype=torch.bfloat16))
    told(ValueError, "HSDP", lambda: wrap(process_group=dist.group.WORLD))
    told(ValueError, "0 times a loss", lambda: wrap().backward([*mine[:2], None]))
    beside = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    base = torch.optim.SGD([*model.parameters(), beside], lr=0.1, foreach=False)
    optimizer = MTLOptimizer(base, UPGrad(), module=model)
    told(NotImplementedError, "a plain tensor beside", lambda: optimizer.backward(mine))


@only(4)
def check_meshes_beside_each_other_are_refused() -> None:
    mesh = init_device_mesh(DEVICE, (2, 2), mesh_dim_names=("a", "b"))
    tensor = torch.ones(4, 4)
    first, second = (
        nn.Parameter(distribute_tensor(tensor, mesh[name], [Shard(0)])) for name in ("a", "b")
    )
    model = nn.ParameterList([first, second])
    optimizer = MTLOptimizer(sgd(model), UPGrad(), module=model)
    mine = [(p.sum() + p.square().sum()).full_tensor() for p in (first, first * 2)]
    told(NotImplementedError, "neither of which holds", lambda: optimizer.backward(mine))
    part = nn.Parameter(DTensor.from_local(tensor, mesh["a"], [Partial()]))
    model = nn.ParameterList([part])
    optimizer = MTLOptimizer(sgd(model), UPGrad(), module=model)
    mine = [part.sum().full_tensor(), (2 * part).sum().full_tensor()]
    told(NotImplementedError, "redistribute it first", lambda: optimizer.backward(mine))


def check_of_stages() -> None:
    model = fresh()

    def wrap(method: Any = None, **options: Any) -> MTLOptimizer:
        return MTLOptimizer(sgd(model), method or UPGrad(), stages=dist.group.WORLD, **options)

    told(NotImplementedError, "call it there", lambda: wrap(SI()))
    told(NotImplementedError, "use a Gram method", lambda: wrap(GradDrop()))
    told(NotImplementedError, "last report's weights", lambda: wrap(every=2))
    for options in (
        {"collect": "batched"},
        {"apply": "backward"},
        {"measure": model.trunk[2].parameters()},
        {"rows_dtype": torch.bfloat16},
    ):
        told(NotImplementedError, "leave them out", lambda options=options: wrap(**options))
    told(NotImplementedError, "goes alone", lambda: wrap(module=model))
    mesh: Any = init_device_mesh(DEVICE, (dist.get_world_size(),))
    told(TypeError, "mesh.get_group()", lambda: MTLOptimizer(sgd(model), UPGrad(), stages=mesh))
    told(NotImplementedError, "goes alone", lambda: wrap(process_group=dist.group.WORLD))
    mine = model(batches(1)[0])
    told(TypeError, "give a function for each", lambda: wrap().backward(mine))
    told(TypeError, "give a function for each", lambda: wrap().backward(torch.stack(mine)))
    told(ValueError, "at least one", lambda: wrap().backward([]))
    told(ValueError, "leave one out", lambda: wrap().backward(mine, features=mine[0]))
    told(ValueError, "keep their graphs", lambda: wrap().backward([len], retain_graph=True))
    told(
        TypeError,
        "not a tensor",
        lambda: MTLOptimizer(sgd(Model()), UPGrad(), process_group=dist.group.WORLD).backward(
            [len]
        ),
    )
