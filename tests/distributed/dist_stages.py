"""Scenarios of pipeline stages: each beside one process that holds the whole model.

Moving activations and their gradients is a person's own business: here send and recv by hand, and
torch.distributed.pipelining.
"""

from __future__ import annotations

import copy
import re
from collections import Counter
from typing import Any

import torch
import torch.distributed as dist
from dist_harness import DEVICE, ROOT, alone, only
from dist_models import (
    advance,
    batches,
    fresh,
    reference,
    same_reports,
    sgd,
    told,
)
from dist_pipeline import TASKS, ByHand, First, Last, losses, same_stage
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import mtlkernels
from benchmarks.traffic import Traffic
from mtlkernels import (
    CAGrad,
    MTLOptimizer,
    NashMTL,
    PCGrad,
    PerPart,
    Status,
    UPGrad,
)

WORLDS = (2,)
PAGE = ROOT / "docs" / "distributed.md"


def steps(
    method: Any,
    cut: int = 1,
    dtype: torch.dtype = torch.float64,
    parts: bool = False,
    bounds: dict[str, Any] | None = None,
    **options: Any,
) -> None:
    """Three optimizer steps of two stages beside those of one process."""
    bounds = bounds or {}
    expected = fresh(dtype=dtype)
    pipeline = ByHand(fresh(dtype=dtype), cut=cut)
    mine: dict[str, Any] = {}
    theirs: dict[str, Any] = {}
    if parts:
        layers = [list(expected.trunk[i].parameters()) for i in (0, 2)]
        theirs = {"parts": layers}
        own = list(pipeline.stage.trunk.parameters())
        mine = {"parts": [own, []] if pipeline.first else [[], own]}
    optimizer = MTLOptimizer(
        sgd(pipeline.stage),
        copy.deepcopy(method),
        stages=pipeline.group,
        check_ranks=True,
        **options,
        **mine,
    )
    plain = reference(expected, method, **options, **theirs)
    for batch in batches(dtype=dtype):
        report = optimizer.backward(pipeline.runs(batch))
        with alone():
            wanted = plain.backward(expected(batch))
        same_reports(report, wanted, check_dtype=False, **bounds)
        same_stage(pipeline.stage, expected, cut, **bounds)
        advance(optimizer, plain)


def check_gram_methods() -> None:
    for method in (UPGrad(), PCGrad(seed=3), CAGrad()):
        steps(method)
    steps(UPGrad(), dtype=torch.float32, bounds={"rtol": 1e-6, "atol": 1e-6})


def check_options() -> None:
    steps(PCGrad(), weight_heads=True)
    steps(PerPart(UPGrad()), parts=True)
    steps(UPGrad(), parts=True, weight_heads=True)


def check_a_stage_of_heads_alone() -> None:
    steps(NashMTL(), cut=3)


def check_a_head_gets_its_own_gradient() -> None:
    pipeline = ByHand(fresh())
    (batch,) = batches(1)
    runs = pipeline.runs(batch)
    optimizer = MTLOptimizer(sgd(pipeline.stage), UPGrad(), stages=pipeline.group)
    optimizer.backward(runs)
    if not pipeline.first:
        expected = fresh()
        expected(batch)[1].backward()
        have = [param.grad for param in pipeline.stage.heads[1].parameters()]
        want = [param.grad for param in expected.heads[1].parameters()]
        torch.testing.assert_close(have, want)


def check_what_was_there_is_added_to() -> None:
    """Of two batches, by name; and micro-batches whose rows add up."""
    expected = fresh()
    pipeline = ByHand(fresh())
    optimizer = MTLOptimizer(sgd(pipeline.stage), UPGrad(), stages=pipeline.group)
    plain = reference(expected, UPGrad())
    names = ["a", "b", "c"]
    for batch in batches(2):
        report = optimizer.backward(dict(zip(names, pipeline.runs(batch), strict=True)))
        assert report.tasks == tuple(names)
        with alone():
            plain.backward(expected(batch))
    same_stage(pipeline.stage, expected)
    (batch,) = batches(1)
    for part in batch.chunk(2):
        assert optimizer.backward(pipeline.runs(part, scale=0.5), accumulate=True) is None
    report = optimizer.combine()
    with alone():
        wanted = plain.backward(expected(batch))
    torch.testing.assert_close((report.gram, report.weights), (wanted.gram, wanted.weights))
    same_stage(pipeline.stage, expected)


def check_scales_and_an_infinity() -> None:
    """Runs of scaled losses; what is infinite on the last stage, the first one skips too."""
    expected = fresh()
    pipeline = ByHand(fresh())
    optimizer = MTLOptimizer(sgd(pipeline.stage), NashMTL(), stages=pipeline.group)
    (batch,) = batches(1)
    scale = torch.tensor(16.0)
    report = optimizer.backward(pipeline.runs(batch, scale=16.0), scaler=scale)
    with alone():
        plain = reference(expected, NashMTL())
        same_reports(report, plain.backward(expected(batch), scaler=scale))
    same_stage(pipeline.stage, expected)
    optimizer.zero_grad()
    report = optimizer.backward(pipeline.runs(batch, spoilt=1))
    assert report.status[1] & Status.NON_FINITE
    assert all(param.grad.isnan().all() for param in pipeline.stage.trunk.parameters())


def check_a_scaler_skips_on_all_stages() -> None:
    """What overflows in a head's own gradient, and below a stage that holds heads alone."""
    for cut, spoils in ((1, "heads.1.bias"), (3, "trunk.2.weight")):
        pipeline = ByHand(fresh(dtype=torch.float32), cut=cut)
        optimizer = MTLOptimizer(sgd(pipeline.stage), UPGrad(), stages=pipeline.group)
        scaler = torch.amp.GradScaler(DEVICE, init_scale=8.0)
        for step, batch in enumerate(batches(3, torch.float32)):
            before = copy.deepcopy(pipeline.stage.state_dict())
            scale = float(scaler.scale(torch.ones(())))
            runs = pipeline.runs(batch, scale=scale)
            if step == 1:
                runs = [_spoiling(run, pipeline.stage, spoils) for run in runs]
            report = optimizer.backward(runs, scaler=scaler)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            assert scaler.get_scale() == (8.0 if step == 0 else 4.0)
            assert bool(report.status.any()) == (step == 1)
            for name, value in pipeline.stage.state_dict().items():
                assert torch.equal(value, before[name]) == (step == 1), name


def _spoiling(run: Any, stage: Any, name: str) -> Any:
    """A run after which that gradient, where the stage has it, is infinite."""

    def spoilt() -> Tensor | None:
        found = run()
        grad = getattr(dict(stage.named_parameters()).get(name), "grad", None)
        if grad is not None:
            grad.fill_(float("inf"))
        return found

    return spoilt


def check_traffic() -> None:
    """T gradients of activations go back; of our own, K and three numbers on the host."""
    pipeline = ByHand(fresh())
    optimizer = MTLOptimizer(sgd(pipeline.stage), UPGrad(), stages=pipeline.group)
    (batch,) = batches(1)
    for _ in range(2):
        runs = pipeline.runs(batch)
        traffic = Traffic()
        with traffic:
            optimizer.backward(runs)
    assert traffic.calls == Counter()
    sends = Counter() if pipeline.first else Counter({"send": TASKS})
    assert traffic.small == Counter({"all-reduce": 4}) + sends
    own = (TASKS**2 + TASKS + 2) + 1 + 2 * TASKS + 1  # of 8 bytes each, half of them sent twice
    back = 0 if pipeline.first else TASKS * len(batch) * pipeline.width
    assert traffic.sent == 8 * (own + back)


def check_the_page_trains_with_a_schedule_of_torch() -> None:
    """The block of docs/distributed.md, beside one process: two micro-batches a run."""
    expected, model = fresh(), fresh()
    rank = dist.get_rank()
    stage = (Last if rank else First)(model, 1)
    data = batches()
    names: dict[str, Any] = {
        "torch": torch,
        "mtlkernels": mtlkernels,
        "stage": stage,
        "rank": rank,
        "device": torch.device(DEVICE),
        "loader": [(x, x) for x in data],
        "loss_of": {str(t): lambda y, x, t=t: losses(y, x)[t] for t in range(TASKS)},
    }
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    exec(compile(code, PAGE.name, "exec"), names)
    base = torch.optim.AdamW(expected.parameters(), lr=1e-3)
    plain = MTLOptimizer(base, PCGrad())
    for batch in data:
        plain.zero_grad()
        with alone():
            wanted = plain.backward(expected(batch))
        plain.step()
    same_reports(names["report"], wanted)
    same_stage(stage, expected)


@only(4)
def check_stages_that_are_sharded() -> None:
    """FSDP2 over the replicas of each stage: the other dimension of a mesh."""
    mesh = init_device_mesh(DEVICE, (2, 2), mesh_dim_names=("pp", "dp"))
    expected = fresh()
    pipeline = ByHand(fresh(), mesh["pp"].get_group())
    plain = reference(expected, UPGrad())
    for head in getattr(pipeline.stage, "heads", []):
        fully_shard(head, mesh=mesh["dp"])
    pipeline.stage = fully_shard(pipeline.stage, mesh=mesh["dp"])
    optimizer = MTLOptimizer(sgd(pipeline.stage), UPGrad(), stages=pipeline.group)
    for batch in batches():
        report = optimizer.backward(pipeline.runs(batch.chunk(2)[mesh["dp"].get_local_rank()]))
        with alone():
            same_reports(report, plain.backward(expected(batch)))
        same_stage(pipeline.stage, expected)
        advance(optimizer, plain)


def check_what_differs_is_told() -> None:
    pipeline = ByHand(fresh())
    rank = dist.get_rank()

    def wrap(method: Any = None, **options: Any) -> MTLOptimizer:
        return MTLOptimizer(
            sgd(pipeline.stage), method or UPGrad(), stages=pipeline.group, **options
        )

    def never() -> None:
        raise AssertionError("a run began")

    names = ["a", "b"] if rank else ["b", "a"]
    told(ValueError, "in its losses", lambda: wrap().backward(dict.fromkeys(names, never)))
    told(ValueError, "a seed", lambda: wrap(PCGrad(seed=rank)).backward([never, never]))
    told(ValueError, "a seed", lambda: wrap(weight_heads=rank == 0).backward([never, never]))
    one = torch.tensor(1.0)
    told(ValueError, "2 stages returned", lambda: wrap().backward([lambda: one, lambda: one]))
    told(ValueError, "0 stages returned", lambda: wrap().backward([lambda: None] * 2))
    mine = [lambda: one if rank else None] * 2
    told(ValueError, "no parameter is shared", lambda: wrap().backward(mine))
    told(ValueError, "shared= names", lambda: wrap(shared=[]).backward(mine))
    for wrong in (1.0, [one], torch.ones(2)):
        mine = [lambda wrong=wrong: wrong if rank else None] * 2
        told(TypeError, "a tensor of one element", lambda mine=mine: wrap().backward(mine))


def check_gradients_in_the_memory_of_others() -> None:
    """Of the run before the last one, and of what .grad held; .grad is what it was then."""
    pipeline = ByHand(fresh())
    params = list(pipeline.stage.parameters())
    buffers = [[torch.ones_like(param) for param in params] for _ in range(2)]

    def leaves(grads: list[Tensor]) -> Any:
        def run() -> None:
            for param, grad in zip(params, grads, strict=True):
                param.grad = grad

        return run

    a, b = buffers
    optimizer = MTLOptimizer(sgd(pipeline.stage), UPGrad(), stages=pipeline.group)
    for before, runs in ((None, [a, b, a]), (a, [b, a])):
        leaves(before or [None] * len(params))()
        told(ValueError, "overwrote", lambda runs=runs: optimizer.backward([*map(leaves, runs)]))
        for p, param in enumerate(params):
            assert param.grad is (None if before is None else before[p])
