"""Scenarios of sharded parameters: FSDP2, HSDP, tensor parallelism, beside one process."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from dist_harness import DEVICE, alone, folder, only
from dist_models import (
    Model,
    Scalar,
    batches,
    everywhere,
    follow,
    fresh,
    own,
    reference,
    same_params,
    same_reports,
    sgd,
    told,
    whole,
)
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

from mtlkernels import (
    DBMTL,
    SI,
    UW,
    CAGrad,
    GradDrop,
    MTLOptimizer,
    NashMTL,
    PCGrad,
    PerPart,
    Status,
    UPGrad,
)

WORLDS = (2, 4)


class Heads(Model):
    """Returns what heads gave, so that losses are outside of fully_shard's modules."""

    def forward(self, x: Tensor) -> list[Tensor]:
        z = self.trunk(x)
        return [head(z) for head in self.heads]


def losses(model: nn.Module, x: Tensor) -> list[Tensor]:
    aims = [x[:, :2] * (t + 1) - t for t in range(3)]
    return [(y - a).square().mean() + 0.1 for y, a in zip(model(x), aims, strict=True)]


def sharded(make: Callable[[], nn.Module] = Heads, **options: Any) -> nn.Module:
    model = fresh(make)
    for head in getattr(model, "heads", []):
        fully_shard(head, **options)
    if hasattr(model, "trunk"):
        fully_shard(model.trunk[0], **options)
    return fully_shard(model, **options)


def pair(method: Any, model: nn.Module, expected: nn.Module, **options: Any) -> tuple[Any, Any]:
    optimizer = MTLOptimizer(sgd(model), copy.deepcopy(method), module=model, **options)
    return optimizer, reference(expected, method, **options)


def steps(
    model: nn.Module,
    method: Any,
    part: Callable[[Tensor], Tensor] = own,
    of: Callable[[nn.Module, Tensor], list[Tensor]] = losses,
    make: Callable[[], nn.Module] = Heads,
    **options: Any,
) -> None:
    expected = fresh(make)
    optimizer, plain = pair(method, model, expected, **options)
    follow(
        model,
        lambda x: of(model, x),
        optimizer,
        Losses(expected, of),
        plain,
        batches(),
        part,
    )


class Losses(nn.Module):
    """A model whose call gives losses."""

    def __init__(self, model: nn.Module, of: Callable[[nn.Module, Tensor], list[Tensor]]) -> None:
        super().__init__()
        self.model, self.of = model, of

    def forward(self, x: Tensor) -> list[Tensor]:
        return self.of(self.model, x)


@only(1, 2, 4)
def check_fsdp2_both_ways_of_resharding() -> None:
    for reshard in (True, False):
        for method in (UPGrad(), PCGrad(seed=2)):
            steps(sharded(reshard_after_forward=reshard), method)


@only(2)
def check_options() -> None:
    steps(sharded(), UPGrad(), weight_heads=True)
    steps(sharded(), NashMTL(), max_norm=0.05)
    model, expected = sharded(), fresh(Heads)
    method = PerPart(UPGrad(), 2)
    optimizer, plain = (
        MTLOptimizer(
            sgd(one),
            copy.deepcopy(method),
            parts=[list(one.trunk[0].parameters()), list(one.trunk[2].parameters())],
            **({"module": one} if one is model else {}),
        )
        for one in (model, expected)
    )
    data = batches()
    follow(model, lambda x: losses(model, x), optimizer, Losses(expected, losses), plain, data)


@only(2)
def check_gradients_are_dtensors() -> None:
    model = sharded()
    optimizer = MTLOptimizer(sgd(model), UPGrad(), module=model)
    optimizer.backward(losses(model, own(batches(1)[0])))
    for param in model.parameters():
        assert isinstance(param.grad, DTensor)
        assert param.grad.placements == param.placements
        assert param.grad.shape == param.shape
        assert param.grad.to_local().shape == param.to_local().shape


@only(2)
def check_gradients_add_up() -> None:
    model, expected = sharded(), fresh(Heads)
    optimizer, plain = pair(UPGrad(), model, expected)
    for batch in batches(2):
        optimizer.backward(losses(model, own(batch)))
        with alone():
            plain.backward(losses(expected, batch))
    same_params(model, expected)


def check_fewer_numbers_than_ranks() -> None:
    def scalar(model: nn.Module, x: Tensor) -> list[Tensor]:
        return [(model(x) - 1).square().mean(), (model(x) + x + 2).square().mean()]

    class Scaled(Scalar):
        def forward(self, x: Tensor) -> Tensor:
            return self.w * x

    steps(sharded(Scaled), CAGrad(), of=scalar, make=Scaled)


@only(2)
def check_loss_methods() -> None:
    steps(sharded(), SI())
    model, expected = sharded(), fresh(Heads)
    methods = [UW(3).double(), UW(3).double()]
    bases = [
        torch.optim.SGD([*one.parameters(), *method.parameters()], lr=0.1, foreach=False)
        for one, method in zip((model, expected), methods, strict=True)
    ]
    optimizer = MTLOptimizer(bases[0], methods[0], module=model)
    plain = MTLOptimizer(bases[1], methods[1])
    data = batches()
    follow(model, lambda x: losses(model, x), optimizer, Losses(expected, losses), plain, data)
    for mine, wanted in zip(methods[0].parameters(), methods[1].parameters(), strict=True):
        torch.testing.assert_close(mine, wanted)


@only(2)
def check_kept_weights() -> None:
    """One backward in two steps of three, with a scale that the weights do not see."""
    model, expected = sharded(), fresh(Heads)
    options = {"every": 3, "weight_heads": True}
    optimizer, plain = pair(UPGrad(), model, expected, **options)
    run = Losses(expected, losses)
    follow(model, lambda x: losses(model, x), optimizer, run, plain, batches(5))
    (batch,) = batches(1)
    optimizer.backward(losses(model, own(batch)), scaler=torch.tensor(4.0))
    with alone():
        plain.backward(losses(expected, batch), scaler=torch.tensor(4.0))
    same_params(model, expected)
    mesh = init_device_mesh(DEVICE, (dist.get_world_size(),))
    model, expected = cut(fresh(Wide), mesh), fresh(Wide)
    base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, foreach=False)
    optimizer = MTLOptimizer(base, UPGrad(), module=model, **options)
    plain, run = reference(expected, UPGrad(), **options), Losses(expected, losses)
    follow(model, lambda x: losses(model, x), optimizer, run, plain, batches(), _same)


class WithFeatures(Heads):
    """Returns the features beside what heads gave."""

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        z = self.trunk(x)
        return z, [head(z) for head in self.heads]


@only(2)
def check_features() -> None:
    def run(model: nn.Module, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        z, answers = model(x)
        aims = [x[:, :2] * (t + 1) - t for t in range(3)]
        return z, [(y - a).square().mean() + 0.1 for y, a in zip(answers, aims, strict=True)]

    for reshard in (True, False):
        for options in ({}, {"weight_heads": True}):
            model = sharded(WithFeatures, reshard_after_forward=reshard)
            expected = fresh(WithFeatures)
            optimizer, plain = pair(UPGrad(), model, expected, **options)
            for batch in batches():
                z, mine = run(model, own(batch))
                report = optimizer.backward(mine, features=z)
                with alone():
                    z, wanted = run(expected, batch)
                    same_reports(report, plain.backward(wanted, features=z))
                same_params(model, expected)
                for one in (optimizer, plain):
                    one.step()
                    one.zero_grad()
    z, mine = run(model, own(batch))
    unused = torch.ones(2, requires_grad=True) * 2
    told(ValueError, "what the heads read", lambda: optimizer.backward(mine, features=unused))


@only(2)
def check_micro_batches() -> None:
    model, expected = sharded(), fresh(Heads)
    optimizer, plain = pair(UPGrad(), model, expected)
    (batch,) = batches(1)
    for part in own(batch).chunk(2):
        optimizer.backward([loss / 2 for loss in losses(model, part)], accumulate=True)
    assert all(param.grad is None for param in model.parameters())
    with alone():
        same_reports(optimizer.combine(), plain.backward(losses(expected, batch)))
    same_params(model, expected)


@only(2)
def check_scaler_skips_everywhere() -> None:
    model = sharded()
    optimizer = MTLOptimizer(sgd(model), UPGrad(), module=model)
    scaler = torch.amp.GradScaler(DEVICE, init_scale=8.0)
    for step, batch in enumerate(batches(2)):
        before = whole(model.trunk[0].weight.detach()).clone()
        mine = losses(model, own(batch))
        if step == 0 and dist.get_rank() == 1:
            mine[2] = mine[2] * float("inf")
        report = optimizer.backward(mine, scaler=scaler)
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        assert torch.equal(before, whole(model.trunk[0].weight.detach())) == (step == 0)
        assert scaler.get_scale() == 4.0
        assert (report.status.tolist() == [0, 0, 0]) == (step == 1)


@only(2)
def check_nan_on_one_rank_and_task() -> None:
    model = sharded()
    optimizer = MTLOptimizer(sgd(model), UPGrad(), module=model)
    mine = losses(model, own(batches(1)[0]))
    if dist.get_rank() == 1:
        mine[1] = mine[1] * float("nan")
    report = optimizer.backward(mine)
    assert report.status[1] & Status.NON_FINITE
    assert all(whole(param.grad).isnan().all() for param in model.trunk.parameters())


@only(2)
def check_mixed_precision_policy() -> None:
    """Against the rows that one backward each of the same model leaves."""
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)

    def make() -> nn.Module:
        torch.manual_seed(0)
        return fully_shard(Heads(), mp_policy=policy)

    (batch,) = batches(1, torch.float32)
    rows = []
    for t in range(3):
        model = make()
        losses(model, own(batch))[t].float().backward()
        grads = [whole(param.grad) for param in model.trunk.parameters()]
        rows.append(torch.cat([g.flatten() for g in grads]).double())
    model = make()
    optimizer = MTLOptimizer(sgd(model), UPGrad(), module=model)
    report = optimizer.backward([loss.float() for loss in losses(model, own(batch))])
    assert all(param.grad.dtype == torch.float32 for param in model.parameters())
    gram = torch.stack(rows) @ torch.stack(rows).T
    torch.testing.assert_close(report.gram, gram, rtol=1e-5, atol=1e-7)
    direction = torch.cat([whole(param.grad).flatten() for param in model.trunk.parameters()])
    torch.testing.assert_close(
        direction.double(), report.weights @ torch.stack(rows), rtol=1e-5, atol=1e-6
    )


@only(2)
def check_the_next_forward_sees_the_step() -> None:
    """And an error in the middle leaves a model that works."""
    for reshard in (True, False):
        model, expected = sharded(reshard_after_forward=reshard), fresh(Heads)
        optimizer, plain = pair(UPGrad(), model, expected)
        (batch,) = batches(1)
        broken = losses(model, own(batch))
        broken[1].register_hook(_raise)
        with pytest.raises(ArithmeticError, match="on purpose"):
            optimizer.backward(broken)
        assert all(param.grad is None for param in model.parameters())
        with torch.no_grad():
            for group in optimizer.param_groups:
                for param in group["params"]:
                    param.to_local().mul_(0.5)
            for param in expected.parameters():
                param.mul_(0.5)
        same_params(model, expected)
        for one, run in ((optimizer, model), (plain, expected)):
            with alone():
                one.backward(losses(run, own(batch) if run is model else batch))
            one.step()
        with torch.no_grad():
            for mine, wanted in zip(model(batch), expected(batch), strict=True):
                torch.testing.assert_close(mine, wanted)


def _raise(grad: Tensor) -> Tensor:
    raise ArithmeticError("on purpose")


@only(2)
def check_refusals() -> None:
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
    told(NotImplementedError, "each rank's own gradients", lambda: wrap(gram="unbiased"))
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
def check_hsdp() -> None:
    mesh = init_device_mesh(DEVICE, (2, 2), mesh_dim_names=("replicate", "shard"))
    steps(sharded(mesh=mesh), UPGrad())


# Tensor parallelism: one batch for all ranks of a group, the trunk cut between its two layers.


class Wide(Heads):
    """A trunk that can be cut, with a layer that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 4), nn.LayerNorm(4))


def cut(model: nn.Module, mesh: DeviceMesh) -> nn.Module:
    plan = {"trunk.0": ColwiseParallel(), "trunk.2": RowwiseParallel()}
    return parallelize_module(model, mesh, plan)


@only(2)
def check_tensor_parallel() -> None:
    """With a bias that is replicated, and heads and a LayerNorm that are no DTensors at all."""
    mesh = init_device_mesh(DEVICE, (dist.get_world_size(),), mesh_dim_names=("tp",))
    for method, options in ((UPGrad(), {}), (PCGrad(), {"weight_heads": True}), (SI(), {})):
        model = cut(fresh(Wide), mesh)
        assert model.trunk[2].bias.placements == (Replicate(),)
        assert model.trunk[0].weight.placements == (Shard(0),)
        assert not isinstance(model.trunk[3].weight, DTensor)
        part = _same
        base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, foreach=False)
        expected = fresh(Wide)
        optimizer = MTLOptimizer(base, copy.deepcopy(method), module=model, **options)
        plain = reference(expected, method, **options)
        run = Losses(expected, losses)
        follow(model, lambda x, m=model: losses(m, x), optimizer, run, plain, batches(), part)


def _same(batch: Tensor) -> Tensor:
    return batch


def _of_replica(batch: Tensor) -> Tensor:
    return batch.chunk(2)[dist.get_rank() // 2]


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

    follow(model, run, optimizer, expected, plain, batches(), _same)
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
    follow(model, lambda x: losses(model, x), optimizer, run, plain, batches(), _of_replica)


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
        follow(
            model, lambda x, m=model: losses(m, x), optimizer, run, plain, batches(), _of_replica
        )


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


@only(4)
def check_unbiased_of_pieces() -> None:
    """Replicas of cut tensors give the matrix that whole replicas give."""
    mesh = init_device_mesh(DEVICE, (2, 2), mesh_dim_names=("dp", "tp"))
    (batch,) = batches(1)
    group = mesh["dp"].get_group()
    reports = []
    for model, module in ((cut(fresh(Wide), mesh["tp"]), True), (fresh(Wide), False)):
        base = torch.optim.SGD(model.parameters(), lr=0.1, foreach=False)
        named = {"module": model} if module else {}
        optimizer = MTLOptimizer(base, UPGrad(), process_group=group, gram="unbiased", **named)
        reports.append(optimizer.backward(losses(model, _of_replica(batch))))
    same_reports(*reports)


# Checkpoints: two ranks save, four load and go on as one process does.


def _trained(steps: int) -> tuple[nn.Module, MTLOptimizer, Sequence[Tensor]]:
    model = sharded()
    optimizer = MTLOptimizer(sgd(model), DBMTL(), module=model)
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
    plain = reference(expected, DBMTL())
    with alone():
        for batch in data[:2]:
            plain.backward(losses(expected, batch))
            plain.step()
            plain.zero_grad()
    run = Losses(expected, losses)
    follow(model, lambda x: losses(model, x), optimizer, run, plain, data[2:])


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
