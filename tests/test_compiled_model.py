"""A compiled model in an eager loop: per-task backwards through one compiled forward."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from contract import Net, batches
from torch import Tensor, nn

from mtlkernels import MTLOptimizer

pytestmark = pytest.mark.usefixtures("one_thread")


class Trunk(nn.Module):
    """The trunk alone compiled, heads and losses eager: then what is shared shows in the graph."""

    def __init__(self, net: Net, compiled: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.net = net
        self.compiled = compiled

    def forward(self, x: Tensor) -> list[Tensor]:
        features = torch.tanh(self.compiled(x))
        return [(head(features) - t - 1).square().mean() for t, head in enumerate(self.net.heads)]


@pytest.mark.parametrize("method", ["pcgrad", "cagrad", "graddrop", "si"])
@pytest.mark.parametrize("part", ["model", "trunk"])
def test_a_compiled_model_trains_from_the_first_call_as_the_eager_one(
    part: str, method: str
) -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    models = [Net(), Net()]
    forwards = [models[0], torch.compile(models[1], backend="aot_eager", fullgraph=True)]
    if part == "trunk":
        trunk = torch.compile(models[1].trunk, backend="aot_eager", fullgraph=True)
        forwards[1] = Trunk(models[1], trunk)
    named = part == "model" and method != "si"  # a loss method weighs whole losses
    optimizers = [
        MTLOptimizer(
            torch.optim.SGD(model.parameters(), lr=0.05),
            method,
            shared=[model.trunk.weight] if named else None,
        )
        for model in models
    ]
    for x in batches(4):
        for forward, optimizer in zip(forwards, optimizers, strict=True):
            optimizer.zero_grad()
            optimizer.backward(forward(x))
            optimizer.step()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    for a, b in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert not torch.equal(models[0].trunk.weight, Net().trunk.weight)


def test_donated_buffers_are_explained() -> None:
    """A compiled model whose backward was first run for one loss gives its activations away."""
    import torch._functorch.config as config

    torch._dynamo.reset()
    net = Net()
    model = torch.compile(net, backend="aot_eager")
    optimizer = MTLOptimizer(
        torch.optim.SGD(net.parameters(), lr=0.05), "pcgrad", shared=[net.trunk.weight]
    )
    x = next(iter(batches(1)))
    sum(model(x)).backward()
    optimizer.zero_grad()
    with pytest.raises(RuntimeError, match="donated_buffer = False before the model first runs"):
        optimizer.backward(model(x))
    assert all(param.grad is None for param in net.parameters())

    torch._dynamo.reset()
    with config.patch(donated_buffer=False):
        sum(model(x)).backward()
        optimizer.zero_grad()
        optimizer.backward(model(x))
    assert net.trunk.weight.grad is not None
