"""Splitter: features' gradients balanced inside one ordinary backward."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.optim import swa_utils

import mtlkernels
from mtlkernels import CRMOGM, CAGrad, GradVac, LogLosses, NashMTL, PCGrad, Splitter, Status


class Net(nn.Module):
    def __init__(self, method: mtlkernels.GramMethod, stages: int = 1, **options: object) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(5, 8), nn.Linear(8, 4)
        self.heads = nn.ModuleList(nn.Linear(4 if stages == 1 else 12, 2) for _ in range(3))
        self.splitter = Splitter(method, 3, **options)
        self.stages = stages
        self.double()

    def features(self, x: Tensor) -> tuple[Tensor, ...]:
        early = torch.tanh(self.first(x))
        late = torch.tanh(self.second(early))
        return (late,) if self.stages == 1 else (early, late)

    def losses(self, x: Tensor, split: bool) -> tuple[list[Tensor], tuple[Tensor, ...]]:
        z = self.features(x)
        own = self.splitter(*z) if split else [z if len(z) > 1 else z[0]] * 3
        reads = [torch.cat(f, dim=1) if self.stages > 1 else f for f in own]
        out = [h(r) for h, r in zip(self.heads, reads, strict=True)]
        return [(y - t).square().mean() for t, y in enumerate(out)], z


@pytest.mark.parametrize("stages", [1, 2])
@pytest.mark.parametrize("method", [PCGrad(), CAGrad(), NashMTL()], ids=repr)
def test_equals_backward_on_features(method, stages) -> None:
    """With two stages the later one's gradient passes the earlier one, and counts there no more."""
    net, twin = Net(type(method)(), stages), Net(method, stages)
    x = torch.randn(6, 5, dtype=torch.float64)
    losses, _ = net.losses(x, split=True)
    sum(losses).backward()
    losses, z = twin.losses(x, split=False)
    own = type(method)()
    report = mtlkernels.backward(losses, list(twin.parameters()), own, features=z)
    torch.testing.assert_close(net.splitter.report.gram, report.gram)
    torch.testing.assert_close(net.splitter.report.weights, report.weights)
    for param, other in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(param.grad, other.grad)


def test_a_head_that_is_not_used_takes_no_part() -> None:
    net = Net(mtlkernels.AvgNorm())
    losses, _ = net.losses(torch.randn(6, 5, dtype=torch.float64), split=True)
    (losses[0] + losses[2]).backward()
    assert net.splitter.report.weights[1] == 0
    assert net.splitter.report.status.tolist() == [0, Status.ZERO_GRADIENT, 0]
    assert net.heads[1].weight.grad is None


def test_the_scale_of_a_scaler_does_not_reach_the_method() -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=512.0)
    scaled, plain = Net(NashMTL(), scaler=scaler), Net(NashMTL())
    x = torch.randn(6, 5, dtype=torch.float64)
    losses, _ = scaled.losses(x, split=True)
    scaler.scale(sum(losses)).backward()
    losses, _ = plain.losses(x, split=True)
    sum(losses).backward()
    torch.testing.assert_close(scaled.splitter.report.gram, plain.splitter.report.gram)
    for param, other in zip(scaled.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(param.grad, 512 * other.grad)


def test_without_gradients_it_passes_values_on() -> None:
    net = Net(PCGrad()).eval()
    x = torch.randn(2, 5, dtype=torch.float64)
    with torch.no_grad():
        copies = net.splitter(x)
    assert all(torch.equal(copy, x) and copy.data_ptr() == x.data_ptr() for copy in copies)
    assert net.splitter.report is None


def test_wrong_use_is_told() -> None:
    for count in (0, 2.0):
        with pytest.raises(ValueError, match="whole number"):
            Splitter(PCGrad(), count)
    net = Net(LogLosses(CAGrad()))
    losses, _ = net.losses(torch.randn(6, 5, dtype=torch.float64), split=True)
    with pytest.raises(ValueError, match="needs the tasks' losses"):
        sum(losses).backward()
    with pytest.raises(TypeError, match=r"splitter\(\*z\)"):
        net.splitter((torch.ones(2), torch.ones(2)))
    with pytest.raises(ValueError, match="use the method without it"):
        Splitter(mtlkernels.Reused(PCGrad(), 2), 3)
    for method in (mtlkernels.SI(), mtlkernels.GradDrop()):
        with pytest.raises(ValueError, match="Gram method"):
            Splitter(method, 3)


def test_state_is_the_model_s() -> None:
    net, fresh = Net(PCGrad(seed=3)), Net(PCGrad(seed=4))
    losses, _ = net.losses(torch.randn(6, 5, dtype=torch.float64), split=True)
    sum(losses).backward()
    fresh.load_state_dict(net.state_dict())
    assert fresh.splitter.method.step == net.splitter.method.step == 1


class Stop(torch.autograd.Function):
    """A function that gives no gradient."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx, grad: Tensor) -> None:
        return None


def test_copies_that_get_no_gradient_give_none() -> None:
    trunk, splitter = nn.Linear(3, 3), Splitter(PCGrad(), 2)
    a, b = splitter(trunk(torch.ones(1, 3)))
    (Stop.apply(a).sum() + Stop.apply(b).sum()).backward()
    assert trunk.weight.grad is None
    assert splitter.report is None


@pytest.mark.parametrize("buffers", [False, True])
@pytest.mark.parametrize("average", [None, 0.9])
@pytest.mark.parametrize("name", ["GradVac", "CRMOGM", "PCGrad"])
def test_averages_of_a_model_pass_the_method_s_state_by(name, average, buffers) -> None:
    """A state that takes its shape from the first losses cannot be averaged, nor can a seed."""
    methods = {
        "GradVac": GradVac,
        "PCGrad": lambda: PCGrad(seed=3),
        "CRMOGM": lambda: CRMOGM(PCGrad()),
    }
    net = Net(methods[name]())
    net.norm = nn.BatchNorm1d(4).double()
    multi = None if average is None else swa_utils.get_ema_multi_avg_fn(average)
    averaged = swa_utils.AveragedModel(net, multi_avg_fn=multi, use_buffers=buffers)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        losses, _ = net.losses(torch.randn(6, 5, dtype=torch.float64), split=True)
        sum(losses).backward()
        optimizer.step()
        averaged.update_parameters(net)
    assert not any("method" in key for key, _ in net.named_buffers())
    assert any(value.numel() for value in net.splitter.method.state_dict().values())
    fresh = Net(methods[name]())
    fresh.norm = nn.BatchNorm1d(4).double()
    fresh.load_state_dict(net.state_dict())
    for key, value in net.splitter.method.state_dict().items():
        assert torch.equal(fresh.splitter.method.state_dict()[key], value)


def test_the_method_moves_with_the_model() -> None:
    splitter = Splitter(PCGrad(seed=3), 2).to("meta")
    assert all(value.device.type == "meta" for value in splitter.method.state_dict().values())
    assert isinstance(copy.deepcopy(splitter).method, PCGrad)
    assert copy.deepcopy(splitter).method is not splitter.method
