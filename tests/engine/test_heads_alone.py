"""A frozen trunk, heads first, a detached task: steps in which no shared parameter is reached."""

from __future__ import annotations

import pytest
import torch
from contract import EVERY_METHOD, Net, batches
from torch import Tensor, nn

import mtlkernels
from mtlkernels import (
    GradDrop,
    MTLOptimizer,
    PCGrad,
    PerPart,
    Reused,
    RowMethod,
    Status,
    Sum,
    UPGrad,
)
from mtlkernels.methods import GramMethod

pytestmark = pytest.mark.usefixtures("one_thread")

WAYS = {
    "rows": {},
    "batched": {"collect": "batched"},
    "without rows": {"apply": "backward"},
    "measured": {"measure": True},
    "named": {"shared": True},
    "heads weighted": {"weight_heads": True},
    "16 bits": {"rows_dtype": torch.bfloat16},
    "reused": {"every": 3},
}
EVERY = {name: make for name, (tasks, make) in EVERY_METHOD.items() if tasks == 3}
X = batches(1)[0]


def frozen(seed: int = 0) -> Net:
    model = Net(3, seed)
    model.trunk.requires_grad_(False)
    return model


def plain(model: Net, losses: list[Tensor]) -> list[Tensor | None]:
    params = [p for p in model.parameters() if p.requires_grad]
    return list(torch.autograd.grad(sum(losses), params, allow_unused=True))


def is_plain(model: Net, x: Tensor = X) -> None:
    """.grad is that of the summed losses, and None where that is."""
    want = plain(model, model(x))
    got = [p.grad for p in model.parameters() if p.requires_grad]
    for a, b in zip(got, want, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("make", EVERY.values(), ids=EVERY.keys())
def test_a_frozen_trunk_trains_the_heads(make) -> None:
    model, method = frozen(), make()
    before = {k: v.clone() for k, v in method.state_dict().items()}
    parts = [[model.trunk.weight]] if isinstance(method, PerPart) else None
    report = mtlkernels.backward(model(X), list(model.parameters()), method, parts=parts)
    if isinstance(method, GramMethod | RowMethod):
        is_plain(model)
        after = method.state_dict()
        assert all(torch.equal(after[k], v) for k, v in before.items())
        assert report.status.tolist() == [Status.ZERO_GRADIENT] * 3
        assert "heads alone" in report.collected
        if report.weights is not None:
            assert report.weights.flatten().tolist() == [1, 1, 1]
    if isinstance(method, GramMethod):
        assert not report.gram.any()
        assert report.direction_norm() == 0
    assert model.trunk.weight.grad is None
    assert all(head.weight.grad.any() for head in model.heads)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
@pytest.mark.parametrize("detach", [False, True], ids=["frozen", "detached"])
def test_every_way_of_taking_a_step(way, detach: bool) -> None:
    model = Net(3) if detach else frozen()

    def losses() -> list[Tensor]:
        features = torch.tanh(model.trunk(X)).detach() if detach else torch.tanh(model.trunk(X))
        return [(head(features) - t).square().mean() for t, head in enumerate(model.heads)]

    named = [model.trunk.weight]
    options = {k: named if k in ("shared", "measure") else v for k, v in way.items()}
    optimizer = MTLOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), UPGrad(), **options)
    for _ in range(4):
        optimizer.zero_grad()
        optimizer.backward(losses())
        want = plain(model, losses())
        got = [p.grad for p in model.parameters() if p.requires_grad]
        for a, b in zip(got, want, strict=True):
            assert (a is None) == (b is None)
            if a is not None:
                torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-3)
                if "rows_dtype" not in way:
                    torch.testing.assert_close(a, b)
        optimizer.step()


@pytest.mark.parametrize("leaf", [False, True])
def test_features_of_a_frozen_trunk(leaf: bool) -> None:
    model = frozen()
    z = torch.tanh(model.trunk(X)).detach().requires_grad_(leaf)
    losses = [(head(z) - t - 1).square().mean() for t, head in enumerate(model.heads)]
    report = mtlkernels.backward(losses, list(model.parameters()), UPGrad(), features=z)
    is_plain(model)
    assert "heads alone" in report.collected
    assert z.grad is None


def test_features_without_a_graph_beside_a_trunk_are_told() -> None:
    model = Net(3)
    with pytest.raises(ValueError, match="feature 0 has no graph"):
        mtlkernels.backward(model(X), list(model.parameters()), UPGrad(), features=torch.ones(2))


@pytest.mark.parametrize("method", [UPGrad, GradDrop])
def test_accumulated_micro_batches(method) -> None:
    model = frozen()
    optimizer = MTLOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), method())
    first, second = batches(2)
    optimizer.backward(model(first), accumulate=True)
    optimizer.backward(model(second), accumulate=True)
    optimizer.combine()
    pairs = zip(model(first), model(second), strict=True)
    for p, want in zip(
        model.heads.parameters(), plain(model, [a + b for a, b in pairs]), strict=False
    ):
        torch.testing.assert_close(p.grad, want)


def test_a_scaler_multiplies_the_heads() -> None:
    model = frozen()
    params = list(model.parameters())
    mtlkernels.backward(model(X), params, UPGrad(), scaler=torch.tensor(8.0))
    got = [p.grad / 8 for p in model.heads.parameters()]
    for a, b in zip(got, plain(model, model(X)), strict=False):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("warm", ["freeze", "detach"])
@pytest.mark.parametrize("name", ["PCGrad", "GradNorm", "GradVac", "Tracked on rows", "Reused"])
def test_heads_first_then_all(name: str, warm: str) -> None:
    """The method begins where a fresh one would, when the trunk joins."""
    model, method, fresh = Net(3), EVERY[name](), EVERY[name]()
    optimizer = MTLOptimizer(torch.optim.SGD(model.parameters(), lr=0.05), method)
    for x in batches(3):
        optimizer.zero_grad()
        model.trunk.requires_grad_(warm != "freeze")
        features = torch.tanh(model.trunk(x))
        features = features.detach() if warm == "detach" else features
        losses = [(head(features) - t).square().mean() for t, head in enumerate(model.heads)]
        optimizer.backward(losses)
        optimizer.step()
    model.trunk.requires_grad_(True)
    for x in batches(4, seed=3):
        optimizer.zero_grad()
        optimizer.backward(model(x))
        got = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        optimizer.zero_grad()
        mtlkernels.backward(model(x), list(model.parameters()), fresh)
        want = [p.grad for p in model.parameters() if p.grad is not None]
        assert all(map(torch.equal, got, want))
        optimizer.step()


@pytest.mark.parametrize("options", [{}, {"apply": "backward"}, {"features": True}])
def test_a_detached_task_leaves_the_trunk_to_the_other(options) -> None:
    model = Net(2)
    z = torch.tanh(model.trunk(X))
    losses = [
        (model.heads[0](z) - 1).square().mean(),
        (model.heads[1](z.detach()) - 2).square().mean(),
    ]
    if "features" in options:
        options = {"features": z}
    want = torch.autograd.grad(sum(losses), model.trunk.weight, retain_graph=True)[0]
    mtlkernels.backward(losses, list(model.parameters()), PCGrad(), **options)
    torch.testing.assert_close(model.trunk.weight.grad, want)
    assert model.heads[1].weight.grad.any()


def test_a_detached_task_beside_two_that_share() -> None:
    model = Net(3)
    z = torch.tanh(model.trunk(X))
    inputs = [z, z.detach(), z]
    losses = [(h(i) - 1).square().mean() for h, i in zip(model.heads, inputs, strict=True)]
    report = mtlkernels.backward(losses, list(model.parameters()), Sum(), features=z)
    assert report.norms()[1] == 0
    assert report.norms()[[0, 2]].all()
    is_finite = [p.grad.isfinite().all() for p in (model.trunk.weight, *model.heads.parameters())]
    assert all(is_finite)


@pytest.mark.parametrize("shared", [None, True])
@pytest.mark.parametrize("options", [{}, {"apply": "backward"}])
def test_losses_that_reach_nothing_are_an_error(shared, options) -> None:
    model, other = Net(3), nn.Parameter(torch.ones(2))
    options = {**options, "shared": [other] if shared else None}
    with pytest.raises(ValueError, match="no loss reaches any of the parameters"):
        mtlkernels.backward(model(X), [other], Sum(), **options)
    assert other.grad is None


def test_named_parameters_that_are_not_the_shared_ones_are_an_error() -> None:
    model = Net(3)
    with pytest.raises(ValueError, match="parameters that shared= names"):
        mtlkernels.backward(model(X), list(model.parameters()), Sum(), shared=[model.unused.weight])
    assert all(p.grad is None for p in model.parameters())


def test_reused_weights_are_found_when_the_trunk_joins() -> None:
    model = frozen()
    method = Reused(UPGrad(), 2)
    mtlkernels.backward(model(X), list(model.parameters()), method)
    assert method.used == 0
    model.trunk.requires_grad_(True)
    report = mtlkernels.backward(model(X), list(model.parameters()), method)
    assert report.gram is not None
    assert method.used == 1
