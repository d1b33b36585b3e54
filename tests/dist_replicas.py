"""Scenarios of replicated parameters: each beside one process with the whole batch."""

from __future__ import annotations

import copy
import pickle
import warnings
from typing import Any

import torch
import torch.distributed as dist
from dist_harness import DEVICE, alone, only
from dist_models import (
    Model,
    Scalar,
    batches,
    ddp,
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
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import mtlkernels
from mtlkernels import (
    FAMO,
    SI,
    UW,
    CAGrad,
    ExcessMTL,
    GradDrop,
    Mean,
    MoCo,
    MTLOptimizer,
    NashMTL,
    PCGrad,
    PerPart,
    Splitter,
    Status,
    TrimmedMean,
    UPGrad,
)

WORLDS = (2, 4)


def _steps(method: Any, make: Any = Model, parts: bool = False, **options: Any) -> None:
    model, expected = fresh(make), fresh(make)

    def named(one: nn.Module) -> dict[str, Any]:
        return {"parts": [[*one.trunk[i].parameters()] for i in (0, 2)]} if parts else {}

    run, optimizer = ddp(model, method, **options, **named(model))
    plain = reference(expected, method, **options, **named(expected))
    follow(model, run, optimizer, expected, plain, batches())


@only(1, 2, 4)
def check_gram_methods() -> None:
    for method in (PCGrad(seed=3), CAGrad(), UPGrad(), NashMTL(), Mean()):
        _steps(method)


@only(1, 2, 4)
def check_options() -> None:
    _steps(PCGrad(), weight_heads=True)
    _steps(UPGrad(), max_norm=0.05)
    _steps(UPGrad(), collect="batched")
    _steps(PerPart(UPGrad(), 2), parts=True)


def check_named_parameters() -> None:
    """Those that are not named count as heads, although all tasks reach them."""
    for options in ({}, {"weight_heads": True}):
        model, expected = fresh(), fresh()
        run, optimizer = ddp(model, UPGrad(), shared=model.trunk[2].parameters(), **options)
        plain = reference(expected, UPGrad(), shared=expected.trunk[2].parameters(), **options)
        follow(model, run, optimizer, expected, plain, batches())


def check_fewer_numbers_than_ranks() -> None:
    _steps(CAGrad(), Scalar)


@only(2)
def check_float32_to_its_rounding() -> None:
    model, expected = fresh(dtype=torch.float32), fresh(dtype=torch.float32)
    run, optimizer = ddp(model, UPGrad())
    data = batches(dtype=torch.float32)
    plain = reference(expected, UPGrad())
    follow(model, run, optimizer, expected, plain, data, rtol=1e-6, atol=1e-6)


@only(2)
def check_rows_in_16_bits() -> None:
    model, expected = fresh(dtype=torch.float32), fresh(dtype=torch.float32)
    run, optimizer = ddp(model, Mean(), rows_dtype=torch.bfloat16)
    data = batches(dtype=torch.float32)
    follow(model, run, optimizer, expected, reference(expected, Mean()), data, rtol=0.03, atol=0.03)
    assert all(param.dtype == torch.float32 for param in model.parameters())


@only(2)
def check_sums_of_float16_rows_do_not_overflow() -> None:
    """Each rank's gradient is 40 000; the greatest float16 is 65 504."""
    w = nn.Parameter(torch.ones(3))
    base = torch.optim.SGD([w], lr=0.1)
    world = dist.group.WORLD
    optimizer = MTLOptimizer(base, Mean(), process_group=world, rows_dtype=torch.float16)
    optimizer.backward([(4e4 * w).sum(), (-2e4 * w).sum()])
    torch.testing.assert_close(w.grad, torch.full((3,), 1e4), rtol=1e-3, atol=0)


def check_a_group_in_place_of_ddp() -> None:
    model, expected = fresh(), fresh()
    optimizer = MTLOptimizer(sgd(model), CAGrad(), process_group=dist.group.WORLD)
    follow(model, model, optimizer, expected, reference(expected, CAGrad()), batches())


@only(2)
def check_mixed_dtypes_and_strides() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 5, 3).to(memory_format=torch.channels_last)
            self.scale = nn.Parameter(torch.full((5, 1, 1), 0.7))

        def forward(self, x: Tensor) -> list[Tensor]:
            image = x.repeat(1, 15).view(len(x), 3, 5, 5)
            z = self.conv(image) * self.scale.double()
            return [z.square().mean(), (z[:, :2] - 1).square().mean(), z.sin().mean() + 2]

    def make() -> nn.Module:
        model = fresh(Mixed)
        model.scale.data = model.scale.data.float()
        return model

    model, expected = make(), make()
    assert not model.conv.weight.is_contiguous()
    run, optimizer = ddp(model, UPGrad())
    follow(
        model,
        run,
        optimizer,
        expected,
        reference(expected, UPGrad()),
        batches(),
        rtol=1e-6,
        atol=1e-6,
    )


@only(2)
def check_grads_add_up() -> None:
    model, expected = fresh(), fresh()
    run, optimizer = ddp(model, UPGrad())
    plain = reference(expected, UPGrad())
    for batch in batches(2):
        optimizer.backward(run(own(batch)))
        with alone():
            plain.backward(expected(batch))
    same_params(model, expected)
    assert model.trunk[0].weight.grad._mtl_flat is model.trunk[2].weight.grad._mtl_flat


@only(2)
def check_losses_as_one_tensor() -> None:
    model, expected = fresh(), fresh()
    run, optimizer = ddp(model, UPGrad())
    (batch,) = batches(1)
    report = optimizer.backward(torch.stack(run(own(batch))))
    with alone():
        same_reports(report, reference(expected, UPGrad()).backward(expected(batch)))
    same_params(model, expected)


def check_a_task_that_a_rank_lacks() -> None:
    """Task 1 on rank 0 only, then on the last rank only, then nowhere, then everywhere."""
    model, expected = fresh(), fresh()
    run, optimizer = ddp(model, UPGrad())
    plain = reference(expected, UPGrad())
    world, rank = dist.get_world_size(), dist.get_rank()
    for batch, has in zip(batches(4), ([0], [world - 1], [], range(world)), strict=True):
        mine = run(own(batch))
        report = optimizer.backward([mine[0], mine[1] if rank in has else None, mine[2]])
        parts = [expected(part) for part in batch.chunk(world)]
        sums = [
            sum(part[t] for r, part in enumerate(parts) if t != 1 or r in has) for t in range(3)
        ]
        losses = [s / world for s in sums] if has else [sums[0] / world, sums[2] / world]
        with alone():
            wanted = plain.backward(losses)
        if has:
            same_reports(report, wanted)
        else:
            assert report.status.tolist() == [0, Status.ZERO_GRADIENT, 0]
            assert all(p.grad is None for p in model.heads[1].parameters())
        same_params(model, expected)
        for one in (optimizer, plain):
            one.step()
            one.zero_grad()


def check_a_rank_without_any_task() -> None:
    model, expected = fresh(), fresh()
    optimizer = MTLOptimizer(sgd(model), UPGrad(), process_group=dist.group.WORLD)
    (batch,) = batches(1)
    first = batch.chunk(dist.get_world_size())[0]
    mine = model(first) if dist.get_rank() == 0 else [None] * 3
    report = optimizer.backward(mine)
    with alone():
        losses = [loss / dist.get_world_size() for loss in expected(first)]
        same_reports(report, reference(expected, UPGrad()).backward(losses))
    same_params(model, expected)


def check_another_head_on_each_rank() -> None:
    """What is a head to each rank is shared by two of them: all have to know."""
    world, rank = dist.get_world_size(), dist.get_rank()
    expected, model = fresh(), fresh()
    optimizer = MTLOptimizer(sgd(model), UPGrad(), process_group=dist.group.WORLD)

    def losses(one: Any, x: Tensor, r: int) -> list[Tensor]:
        z = one.features(x)
        first, second = (0, 1) if r == 0 else (1, 0)
        return [one.heads[first](z).square().mean(), (one.heads[second](z) - 1).square().mean()]

    (batch,) = batches(1)
    report = optimizer.backward(losses(model, own(batch), rank))
    parts = [losses(expected, part, r) for r, part in enumerate(batch.chunk(world))]
    with alone():
        wanted = reference(expected, UPGrad()).backward(
            [sum(part[t] for part in parts) / world for t in range(2)]
        )
    same_reports(report, wanted)
    same_params(model, expected)
    assert not torch.equal(whole(model.heads[0].weight.grad), torch.zeros(2, 4).double())


def check_nan_on_one_rank_and_task() -> None:
    model = fresh()
    run, optimizer = ddp(model, UPGrad())
    losses = run(own(batches(1)[0]))
    if dist.get_rank() == dist.get_world_size() - 1:
        losses[1] = losses[1] * float("nan")
    report = optimizer.backward(losses)
    assert report.status[1] & Status.NON_FINITE
    assert report.losses.isnan().tolist() == [False, True, False]
    for param in model.trunk.parameters():
        assert param.grad.isnan().all()


def check_scaler_skips_everywhere() -> None:
    model = fresh(dtype=torch.float32)
    run, optimizer = ddp(model, UPGrad())
    scaler = torch.amp.GradScaler(DEVICE, init_scale=8.0)
    for step, batch in enumerate(batches(2, torch.float32)):
        before = copy.deepcopy(model.state_dict())
        losses = run(own(batch))
        if step == 0 and dist.get_rank() == 1:
            losses[2] = losses[2] * float("inf")
        report = optimizer.backward(losses, scaler=scaler)
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        changed = not torch.equal(before["trunk.0.weight"], model.trunk[0].weight)
        assert changed == (step == 1)
        assert scaler.get_scale() == 4.0
        assert report.losses.isfinite().all() == (step == 1)


@only(2)
def check_scales_that_differ() -> None:
    model = fresh()
    run, optimizer = ddp(model, UPGrad())
    scale = torch.tensor(8.0 if dist.get_rank() == 0 else 4.0)
    report = optimizer.backward(run(own(batches(1)[0])), scaler=scale)
    assert report.weights.isnan().all()
    assert all(param.grad.isnan().all() for param in model.trunk.parameters())


@only(2)
def check_a_scale_is_not_seen() -> None:
    model, expected = fresh(), fresh()
    run, optimizer = ddp(model, NashMTL())
    (batch,) = batches(1)
    report = optimizer.backward(run(own(batch)), scaler=torch.tensor(16.0))
    with alone():
        plain = reference(expected, NashMTL())
        same_reports(report, plain.backward(expected(batch), scaler=torch.tensor(16.0)))
    same_params(model, expected)


@only(2)
def check_loss_methods() -> None:
    for method in (SI(), FAMO()):
        _steps(method)
    model, expected = fresh(), fresh()
    pairs = []
    for one in (model, expected):
        method = UW(3).double()
        base = torch.optim.SGD([*one.parameters(), *method.parameters()], lr=0.1)
        pairs.append((method, base))
    run = DistributedDataParallel(model)
    optimizer = MTLOptimizer(pairs[0][1], pairs[0][0], module=run)
    plain = MTLOptimizer(pairs[1][1], pairs[1][0])
    follow(model, run, optimizer, expected, plain, batches())
    for mine, wanted in zip(pairs[0][0].parameters(), pairs[1][0].parameters(), strict=True):
        torch.testing.assert_close(mine, wanted)
        assert not torch.equal(mine.detach(), torch.zeros_like(mine))


@only(2)
def check_row_methods() -> None:
    for method in (GradDrop(seed=5), TrimmedMean(), MoCo(), ExcessMTL()):
        _steps(method)


@only(1, 2, 4)
def check_kept_weights() -> None:
    model, expected = fresh(), fresh()
    run, optimizer = ddp(model, UPGrad(), every=3)
    follow(model, run, optimizer, expected, reference(expected, UPGrad(), every=3), batches(5))


@only(1, 2, 4)
def check_features() -> None:
    """The last batch with a task that only rank 0 has."""
    model, expected = fresh(), fresh()
    optimizer = MTLOptimizer(sgd(model), UPGrad(), process_group=dist.group.WORLD)
    plain = reference(expected, UPGrad())
    world, rank = dist.get_world_size(), dist.get_rank()
    for step, batch in enumerate(batches()):
        z = model.features(own(batch))
        mine: list[Tensor | None] = model.losses(z, own(batch))
        if step == 2 and rank > 0:
            mine[1] = None
        report = optimizer.backward(mine, features=z)
        with alone():
            z = expected.features(batch)
            wanted = expected.losses(z, batch)
            if step == 2:
                first = slice(len(batch) // world)
                wanted[1] = expected.losses(z[first], batch[first])[1] / world
            same_reports(report, plain.backward(wanted, features=z))
        same_params(model, expected)
        for one in (optimizer, plain):
            one.step()
            one.zero_grad()


def check_measured_on_some_parameters() -> None:
    model, expected = fresh(), fresh()
    run, optimizer = ddp(model, UPGrad(), measure=model.trunk[2].parameters())
    plain = reference(expected, UPGrad(), measure=expected.trunk[2].parameters())
    follow(model, run, optimizer, expected, plain, batches())


@only(2)
def check_micro_batches() -> None:
    for method, options in (
        (UPGrad(), {}),
        (PCGrad(), {"weight_heads": True}),
        (TrimmedMean(), {}),
    ):
        model, expected = fresh(), fresh()
        run, optimizer = ddp(model, method, **options)
        plain = reference(expected, method, **options)
        for batch in batches(2):
            for part in own(batch).chunk(2):
                assert optimizer.backward([x / 2 for x in run(part)], accumulate=True) is None
            with alone():
                same_reports(optimizer.combine(), plain.backward(expected(batch)))
            same_params(model, expected)
            for one in (optimizer, plain):
                one.step()
                one.zero_grad()


def check_unbiased() -> None:
    """U_ij = the mean over pairs of different ranks of <g_i of one, g_j of the other>."""
    model, expected = fresh(), fresh()
    run, optimizer = ddp(model, UPGrad(), gram="unbiased")
    (batch,) = batches(1)
    report = optimizer.backward(run(own(batch)))
    rows = []
    for part in batch.chunk(dist.get_world_size()):
        shared = list(expected.trunk.parameters())
        losses = expected(part)
        grads = [torch.autograd.grad(loss, shared, retain_graph=True) for loss in losses]
        rows.append(torch.stack([torch.cat([g.flatten() for g in row]) for row in grads]))
    pairs = [a @ b.T for r, a in enumerate(rows) for s, b in enumerate(rows) if r != s]
    unbiased = torch.stack(pairs).mean(0)
    torch.testing.assert_close(report.gram, unbiased)
    assert report.statistic == "unbiased"
    values, vectors = torch.linalg.eigh(unbiased)
    near = vectors @ values.clamp_min(0).diag() @ vectors.T
    weights = UPGrad()((near + near.T) / 2)
    torch.testing.assert_close(report.weights, weights)
    direction = weights @ torch.stack(rows).mean(0)
    have = torch.cat([param.grad.flatten() for param in model.trunk.parameters()])
    torch.testing.assert_close(have, direction)
    told(
        ValueError, "leave out every=", lambda: ddp(fresh(), UPGrad(), gram="unbiased", max_norm=1)
    )
    z = model.features(own(batch))
    told(
        ValueError,
        "leave out features=",
        lambda: optimizer.backward(model.losses(z, own(batch)), features=z),
    )
    told(ValueError, 'choose "exact"', lambda: ddp(fresh(), UPGrad(), gram="local"))


def check_unbiased_where_a_rank_has_no_task() -> None:
    """Its zeros count as samples do."""
    model = fresh()
    optimizer = MTLOptimizer(sgd(model), UPGrad(), process_group=dist.group.WORLD, gram="unbiased")
    mine = model(own(batches(1)[0])) if dist.get_rank() == 0 else [None] * 3
    report = optimizer.backward(mine)
    torch.testing.assert_close(report.gram, torch.zeros(3, 3).double(), atol=1e-12, rtol=0)


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
def check_refusals() -> None:
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
    told(NotImplementedError, "keeps no rows", lambda: wrap(run, apply="backward"))
    told(
        ValueError,
        "for several ranks",
        lambda: MTLOptimizer(sgd(model), UPGrad(), gram="unbiased"),
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
def check_what_came_before_is_kept_in_a_copy() -> None:
    model = fresh()
    run, optimizer = ddp(model, UPGrad())
    other = copy.deepcopy(optimizer)
    assert other._mtl.ranks is optimizer._mtl.ranks
    optimizer.backward(run(own(batches(1)[0])))
    assert whole(model.trunk[0].weight.grad).isfinite().all()
