"""Weighted backward passes beside Functions that work in place and hooks that remove themselves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from broken_layers import CHANGING, WRITING, Net
from torch import Tensor

from mtlkernels import FixedWeights, GradNorm, MTLOptimizer, Sum
from mtlkernels.autograd.trial import SelfCheckError


class Reversal(torch.autograd.Function):
    """Turns the gradient round in the memory that it was handed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.neg_()


def batch() -> Tensor:
    return torch.randn(8, 4, generator=torch.Generator().manual_seed(1))


def same_as_plain(net: Net, other: Net, through: Any, **options: Any) -> None:
    """Sum by one weighted backward is the plain loop."""
    features = options.pop("features", False)
    if "measure" in options:
        options["measure"] = net.second.parameters()
    optimizer = MTLOptimizer(torch.optim.SGD(net.parameters(), lr=0.1), Sum(), **options)
    z = net.features(batch())
    out = through(z)
    optimizer.backward(net.of_features(out), **({"features": z} if features else {}))
    sum(other.of_features(through(other.features(batch())))).backward()
    for mine, expected in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, expected.grad)


@pytest.mark.parametrize(
    "options",
    [{"measure": True}, {"apply": "backward"}, {"features": True}, {"collect": "batched"}],
    ids=str,
)
@pytest.mark.parametrize("at", ["the cut", "the middle"])
def test_a_function_may_work_in_place_on_its_gradient(options: Any, at: str) -> None:
    if at == "the cut":
        same_as_plain(Net(), Net(), Reversal.apply, **options)
    else:
        middle = lambda x, layer: Reversal.apply(layer(x))  # noqa: E731
        same_as_plain(Net(middle), Net(middle), lambda z: z, **options)


def once(z: Tensor) -> Tensor:
    handle = z.register_hook(lambda grad: (handle.remove(), 3 * grad)[1])
    return z


def test_a_hook_at_the_features_is_left_to_the_backward_below() -> None:
    same_as_plain(Net(), Net(), once, features=True)
    ran: list[Tensor] = []

    def noted(z: Tensor) -> Tensor:
        z.register_hook(lambda grad: ran.append(grad))
        return z

    net = Net()
    z = noted(net.features(batch()))
    optimizer = MTLOptimizer(torch.optim.SGD(net.parameters(), lr=0.1), Sum())
    optimizer.backward(net.of_features(z), features=z)
    assert len(ran) == 1


@pytest.mark.parametrize("middle", [*WRITING.values(), *CHANGING.values()])
def test_features_take_one_pass_through_what_bears_one(middle: Any) -> None:
    weights = [1.0, 10.0]
    net, other = Net(middle), Net(middle)
    optimizer = MTLOptimizer(torch.optim.SGD(net.parameters(), lr=0.1), FixedWeights(weights))
    torch.manual_seed(2)
    z = net.features(batch())
    optimizer.backward(net.of_features(z), features=z)
    torch.manual_seed(2)
    sum(w * x for w, x in zip(weights, other(batch()), strict=True)).backward()
    for mine, expected in zip(net.shared(), other.shared(), strict=True):
        torch.testing.assert_close(mine.grad, expected.grad)


REPEATED = {name: m for name, m in CHANGING.items() if "linear" not in name}


@pytest.mark.parametrize("middle", [WRITING["a backward inside"], *REPEATED.values()])
@pytest.mark.parametrize("options", [{"measure": True}, {"apply": "backward"}], ids=str)
def test_several_passes_below_the_cut_are_checked(middle: Any, options: Any) -> None:
    net = Net(middle)
    if "measure" in options:
        options = {"measure": net.first.parameters()}
    method = GradNorm()
    before = dict(method.state_dict())
    optimizer = MTLOptimizer(torch.optim.SGD(net.parameters(), lr=0.1), method, **options)
    with pytest.raises(SelfCheckError, match="check=False"):
        optimizer.backward(net(batch()))
    assert all(param.grad is None for param in net.parameters())
    assert method.state_dict().keys() == before.keys()


@pytest.mark.parametrize("middle", [*WRITING.values(), *REPEATED.values()])
def test_what_is_measured_above_such_a_layer_is_fine(middle: Any) -> None:
    net, other = Net(middle), Net(middle)
    measure = net.third.parameters()
    optimizer = MTLOptimizer(torch.optim.SGD(net.parameters(), lr=0.1), Sum(), measure=measure)
    torch.manual_seed(2)
    optimizer.backward(net(batch()))
    torch.manual_seed(2)
    sum(other(batch())).backward()
    for mine, expected in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, expected.grad)
