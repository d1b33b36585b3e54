"""What each route sends, counted: in units of what DistributedDataParallel sends for one backward.

The table of docs/distributed.md. Numbers are up to the padding of a piece, a few elements a rank.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from dist_harness import only
from dist_models import drawn, fresh, own
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from benchmarks.traffic import Traffic
from mtlkernels import SI, MTLOptimizer, TrimmedMean, UPGrad
from mtlkernels.distributed import collectives

WORLDS = (2, 4)
TASKS = 3


class Large(nn.Module):
    """12 850 shared numbers, 153 of heads."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(5, 200), nn.Tanh(), nn.Linear(200, 50))
        self.heads = nn.ModuleList(nn.Linear(50, 1) for _ in range(TASKS))

    def forward(self, x: Tensor) -> list[Tensor]:
        return self.losses(self.trunk(x))

    def losses(self, z: Tensor) -> list[Tensor]:
        return [(head(z) - t).square().mean() + 0.1 for t, head in enumerate(self.heads)]


def _batch() -> Tensor:
    return own(drawn(8, torch.Generator("cpu").manual_seed(2)))


def _counted(run: Callable[[], Any]) -> Traffic:
    traffic = Traffic()
    with traffic:
        run()
    return traffic


def _ddp_alone() -> float:
    """Bytes that DistributedDataParallel sends for the sum of the losses."""
    run = DistributedDataParallel(fresh(Large))
    total = sum(run(_batch()))
    traffic = _counted(total.backward)
    numbers = sum(param.numel() for param in run.parameters())
    world = dist.get_world_size()
    assert traffic.sent == pytest.approx(2 * (world - 1) / world * numbers * 8)
    return traffic.sent


def _second_step(method: Any, with_features: bool = False, **options: Any) -> Traffic:
    """The traffic of a step in which nothing has to be agreed on."""
    model = fresh(Large)
    if options.pop("measured", False):
        options["measure"] = model.trunk[2].parameters()
    optimizer = MTLOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1),
        method,
        process_group=dist.group.WORLD,
        **options,
    )
    for _ in range(2):
        z = model.trunk(_batch())
        losses = model.losses(z)
        given = {"features": z} if with_features else {}
        traffic = _counted(lambda losses=losses, given=given: optimizer.backward(losses, **given))
    return traffic


def check_rows() -> None:
    """T reduce-scatters, an all-gather, a packed sum of K and losses, one number on the host."""
    traffic = _second_step(UPGrad())
    assert traffic.calls == Counter({"reduce-scatter": TASKS, "all-gather": 1})
    assert traffic.small == Counter({"all-reduce": 2})
    assert traffic.sent / _ddp_alone() == pytest.approx((TASKS + 1) / 2, rel=0.03)


@only(2)
def check_a_row_travels_while_the_next_backward_runs() -> None:
    """Each task's reduction starts before the next backward does, and is waited for after it."""
    model = fresh(Large)
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = MTLOptimizer(base, UPGrad(), process_group=dist.group.WORLD)
    events: list[str] = []
    found = model(_batch())
    for t, loss in enumerate(found):
        loss.register_hook(lambda grad, t=t: events.append(f"backward {t}"))

    def start(part: Tensor, whole: Tensor, group: Any) -> collectives.Pending:
        events.append("start")
        return reduce_scatter(part, whole, group)

    def wait(pending: collectives.Pending) -> None:
        if pending.work is not None and pending.what.startswith("reducing a task"):
            events.append("wait")
        wait_for(pending)

    reduce_scatter, wait_for = collectives.reduce_scatter, collectives.Pending.wait
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(collectives, "reduce_scatter", start)
        patch.setattr(collectives.Pending, "wait", wait)
        optimizer.backward(found)
    # Of three, the first is waited for where its memory is needed again: two are on the way.
    expected = ["backward 0", "start", "backward 1", "start", "backward 2", "wait", "start"]
    assert events == [*expected, "wait", "wait"]


@only(2)
def check_heads_that_are_weighted_ride_along() -> None:
    traffic = _second_step(UPGrad(), weight_heads=True)
    assert traffic.calls == Counter({"reduce-scatter": TASKS, "all-gather": 1})
    assert traffic.sent / _ddp_alone() == pytest.approx((TASKS + 1) / 2, rel=0.03)


@only(2)
def check_rows_in_16_bits_are_smaller() -> None:
    sent = []
    for dtype in (None, torch.bfloat16):
        model = fresh(Large, torch.float32)
        optimizer = MTLOptimizer(
            torch.optim.SGD(model.parameters(), lr=0.1),
            UPGrad(),
            process_group=dist.group.WORLD,
            rows_dtype=dtype,
        )
        sent.append(_counted(lambda o=optimizer, m=model: o.backward(m(_batch().float()))).sent)
    assert sent[1] / sent[0] == pytest.approx((TASKS / 2 + 1) / (TASKS + 1), rel=0.03)


def check_one_backward_routes() -> None:
    """A loss method, features and kept weights: what plain DistributedDataParallel sends."""
    for traffic in (
        _second_step(SI()),
        _second_step(UPGrad(), with_features=True),
        _second_step(UPGrad(), every=5),
    ):
        assert traffic.calls == Counter({"all-reduce": 1})
        assert traffic.small == Counter({"all-reduce": 2})
        assert traffic.sent / _ddp_alone() == pytest.approx(1, rel=0.01)


@only(2)
def check_measured() -> None:
    """The rows of what is measured besides."""
    measured = 200 * 50 + 50
    numbers = sum(param.numel() for param in fresh(Large).parameters())
    traffic = _second_step(UPGrad(), measured=True)
    assert traffic.calls == Counter({"all-reduce": 2})
    assert traffic.sent / _ddp_alone() == pytest.approx(1 + TASKS * measured / numbers, rel=0.01)


@only(2)
def check_row_methods_and_accumulation() -> None:
    traffic = _second_step(TrimmedMean())
    assert traffic.calls == Counter({"all-reduce": 1})
    assert traffic.sent / _ddp_alone() == pytest.approx(TASKS, rel=0.03)
    model = fresh(Large)
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = MTLOptimizer(base, UPGrad(), process_group=dist.group.WORLD)
    for _ in range(2):
        quiet = _counted(
            lambda: [optimizer.backward(model(_batch()), accumulate=True) for _ in range(4)]
        )
        assert quiet.calls == quiet.small == Counter()
        traffic = _counted(optimizer.combine)
    assert traffic.calls == Counter({"reduce-scatter": TASKS, "all-gather": 1})


def check_fsdp2() -> None:
    """A row's reduce-scatter a task and shared group; no all-gather more than for one backward."""

    def sharded() -> nn.Module:
        model = fresh(Large)
        for part in (model.trunk[0], model.trunk[2], *model.heads):
            fully_shard(part)
        return fully_shard(model)

    model = sharded()
    plain = _counted(lambda: sum(model(_batch())).backward())
    model = sharded()
    optimizer = MTLOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), UPGrad(), module=model)
    for _ in range(2):
        traffic = _counted(lambda: optimizer.backward(model(_batch())))
    kinds = ("reduce-scatter", "all-gather")
    model = sharded()
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    reused = MTLOptimizer(base, UPGrad(), module=model, every=2, weight_heads=True)
    for _ in range(2):
        kept = _counted(lambda: reused.backward(model(_batch())))
    assert kept.calls == plain.calls
    one, all_tasks = ({k: t.calls[k] + t.small[k] for k in kinds} for t in (plain, traffic))
    shared, heads = 2, TASKS
    assert one["reduce-scatter"] == shared + heads
    assert all_tasks["reduce-scatter"] == TASKS * shared + heads
    assert all_tasks["all-gather"] == one["all-gather"]
    assert traffic.small["all-reduce"] == 1
