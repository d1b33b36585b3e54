"""parts= with a plain Gram method: parts are measured, the step is the one without them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import mtlkernels
from mtlkernels import (
    CRMOGM,
    CAGrad,
    GradVac,
    GramMethod,
    MTLOptimizer,
    PCGrad,
    PerPart,
    Reused,
    named_parts,
)

pytestmark = pytest.mark.usefixtures("one_thread")


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        first, second = nn.Sequential(nn.Linear(4, 6), nn.Tanh()), nn.Linear(6, 5)
        self.encoder = nn.Sequential(first, second)
        self.heads = nn.ModuleList(nn.Linear(5, 1) for _ in range(3))

    def losses(self, seed: int) -> list[Tensor]:
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(seed))
        features = self.encoder(x).tanh()
        return [
            (head(features) - x[:, i : i + 1]).square().mean() for i, head in enumerate(self.heads)
        ]


@pytest.mark.parametrize("inner", [PCGrad, CAGrad, GradVac])
def test_the_step_is_the_one_without_parts(inner) -> None:
    """Over steps, so that states and random orders move alike."""
    model = Model()
    other = copy.deepcopy(model)
    layers = named_parts(model)
    plain = MTLOptimizer(torch.optim.SGD(other.parameters(), lr=0.1), inner())
    parted = MTLOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1), inner(), parts=list(layers.values())
    )
    for seed in range(3):
        for optimizer, net in ((plain, other), (parted, model)):
            optimizer.zero_grad()
            report = optimizer.backward(net.losses(seed))
            optimizer.step()
        assert (report.weights == report.weights[0]).all()
        for a, b in zip(model.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-7)


def test_the_report_has_each_part_s_numbers() -> None:
    model = Model()
    layers = named_parts(model.encoder)
    losses = model.losses(0)
    params = list(model.parameters())
    rows = [
        [torch.autograd.grad(loss, part, retain_graph=True) for part in layers.values()]
        for loss in losses
    ]
    report = mtlkernels.backward(losses, params, PCGrad(), parts=list(layers.values()))
    norms, cosines = report.norms(by_part=True), report.cosines(by_part=True)
    rates = report.conflict_rate(by_part=True)
    for b in range(len(layers)):
        G = torch.stack([torch.cat([g.flatten() for g in row[b]]) for row in rows]).double()
        K = G @ G.T
        torch.testing.assert_close(norms[b], G.norm(dim=1), rtol=1e-5, atol=0)
        unit = G / G.norm(dim=1, keepdim=True)
        torch.testing.assert_close(cosines[b], unit @ unit.T, rtol=1e-5, atol=1e-6)
        assert rates[b].item() == pytest.approx((K[[0, 0, 1], [1, 2, 2]] < 0).double().mean())
    torch.testing.assert_close(norms.square().sum(dim=0).sqrt(), report.norms())


def test_a_step_without_parts_has_none() -> None:
    model = Model()
    report = mtlkernels.backward(model.losses(0), list(model.parameters()), PCGrad())
    with pytest.raises(ValueError, match="without parts: pass parts="):
        report.norms(by_part=True)


class Silent(GramMethod):
    """A method of a person's own, which says nothing of its status."""

    def forward(self, gram: Tensor, losses: Tensor | None = None) -> Tensor:
        return torch.ones_like(gram[0])


@pytest.mark.parametrize("method", [Silent(), PCGrad()])
def test_a_bad_task_is_named(method) -> None:
    grads = [[torch.ones(2), torch.ones(3)] for _ in range(3)]
    _, report = mtlkernels.aggregate(grads, method, parts=[[0], [1]])
    assert report.status.tolist() == [0, 0, 0]
    grads[2][1] = grads[2][1] * torch.nan
    _, report = mtlkernels.aggregate(grads, method, parts=[[0], [1]])
    assert report.status.tolist() == [0, 0, 1]
    assert report.gram[0].isfinite().all()


def test_heads_are_weighted_as_without_parts() -> None:
    """Also under a scaler: the method sees the losses' own gradients."""
    model = Model()
    other = copy.deepcopy(model)
    for scaler in (None, torch.tensor(1024.0)):
        for net, parts in ((model, list(named_parts(model).values())), (other, None)):
            net.zero_grad()
            report = mtlkernels.backward(
                *(net.losses(0), list(net.parameters()), CAGrad()),
                parts=parts,
                weight_heads=True,
                scaler=scaler,
            )
        for a, b in zip(model.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-7)
        assert report.gram.shape == (3, 3)


def test_what_parts_do_not_go_with() -> None:
    model = Model()
    layers = list(named_parts(model.encoder).values())
    for method in (CRMOGM(PerPart(PCGrad())), Reused(PerPart(PCGrad()), 1)):
        with pytest.raises(TypeError, match=r"give parts= to PerPart\("):
            mtlkernels.aggregate([[torch.ones(2)] * 2] * 2, method, parts=[[0], [1]])
    with pytest.raises(ValueError, match="not a Gram method of one Gram"):
        PerPart(PerPart(PCGrad()))
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    for options in ({"apply": "backward"}, {"measure": layers[1]}):
        with pytest.raises(ValueError, match="parts= needs the task gradients of each part"):
            MTLOptimizer(base, PCGrad(), parts=layers, **options)
    with pytest.raises(ValueError, match="Reused reuses weights: leave one out"):
        MTLOptimizer(base, PCGrad(), parts=layers, every=2)


def test_parts_by_layer_module_and_model() -> None:
    model = Model()
    model.heads[1].weight = model.heads[0].weight
    names = ["encoder.0.0", "encoder.1", "heads.0", "heads.1", "heads.2"]
    assert list(named_parts(model)) == names
    assert list(named_parts(model, depth=1)) == ["encoder", "heads"]
    (name,) = named_parts(model, depth=0)
    assert name == "Model"
    for depth in (None, 0, 1, 2):
        found = [p for part in named_parts(model, depth).values() for p in part]
        assert list(map(id, found)) == list(map(id, model.parameters()))
    assert [p is model.heads[1].bias for p in named_parts(model)["heads.1"]] == [True]
