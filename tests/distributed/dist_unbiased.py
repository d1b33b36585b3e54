"""Scenarios of `gram="unbiased"`."""

from __future__ import annotations

import torch
import torch.distributed as dist
from dist_harness import DEVICE, only
from dist_models import (
    batches,
    ddp,
    fresh,
    own,
    same_reports,
    sgd,
    told,
)
from dist_sharded import Wide, cut, losses, of_replica
from torch.distributed.device_mesh import init_device_mesh

from mtlkernels import (
    MTLOptimizer,
    UPGrad,
)

WORLDS = (2, 4)


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
    told(ValueError, "leave out every=", lambda: ddp(fresh(), UPGrad(), gram="unbiased", every=2))
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
        reports.append(optimizer.backward(losses(model, of_replica(batch))))
    same_reports(*reports)
