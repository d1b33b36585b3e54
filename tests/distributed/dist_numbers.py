"""Scenarios of dtypes, strides, scales and infinities, over replicas."""

from __future__ import annotations

import copy

import torch
import torch.distributed as dist
from dist_harness import DEVICE, alone, only
from dist_models import (
    batches,
    ddp,
    follow,
    fresh,
    own,
    reference,
    same_params,
    same_reports,
)
from torch import Tensor, nn

from mtlkernels import (
    Mean,
    MTLOptimizer,
    NashMTL,
    Status,
    UPGrad,
)

WORLDS = (2, 4)


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
