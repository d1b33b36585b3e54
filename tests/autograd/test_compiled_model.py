"""A compiled model in an eager loop: per-task backwards through one compiled forward."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from compilers import has_cpp_compiler
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
    wanted = r"`from torch\._functorch import config` and set config\.donated_buffer = False before"
    with pytest.raises(RuntimeError, match=wanted):
        optimizer.backward(model(x))
    assert all(param.grad is None for param in net.parameters())

    torch._dynamo.reset()
    with config.patch(donated_buffer=False):
        sum(model(x)).backward()
        optimizer.zero_grad()
        optimizer.backward(model(x))
    assert net.trunk.weight.grad is not None


def compiled_trunk(backend: str = "aot_eager") -> tuple[Net, Callable[[Tensor], Tensor]]:
    torch._dynamo.reset()
    net = Net()
    return net, torch.compile(net.trunk, backend=backend, fullgraph=True)


@pytest.mark.parametrize("way", ["features", "measure", "every"])
def test_cheaper_steps_through_a_compiled_trunk(way: str) -> None:
    """The trunk is one node of the graph: the cut lies above it."""
    net, trunk = compiled_trunk()
    twin = Net()
    options = {"measure": {"measure": [net.trunk.weight]}, "every": {"every": 2}}
    optimizer = MTLOptimizer(
        torch.optim.SGD(net.parameters(), lr=0.05), "cagrad", **options.get(way, {})
    )
    given = {} if way != "measure" else {"measure": [twin.trunk.weight]}
    other = MTLOptimizer(torch.optim.SGD(twin.parameters(), lr=0.05), "cagrad", **given)
    for step, x in enumerate(batches(3)):
        z, y = torch.tanh(trunk(x)), torch.tanh(twin.trunk(x))
        losses = [(head(z) - t - 1).square().mean() for t, head in enumerate(net.heads)]
        expected = [(head(y) - t - 1).square().mean() for t, head in enumerate(twin.heads)]
        optimizer.zero_grad()
        other.zero_grad()
        report = optimizer.backward(losses, features=z if way == "features" else None)
        told = other.backward(expected, features=y if way == "features" else None)
        if way == "every" and step == 1:
            break  # the twin has no kept weights
        torch.testing.assert_close(report.weights, told.weights)
        for a, b in zip(net.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad)
        optimizer.step()
        other.step()


@pytest.mark.skipif(not has_cpp_compiler(), reason="inductor finds no C++ compiler")
@pytest.mark.filterwarnings("ignore:.torch.:DeprecationWarning", "ignore:.torch.:FutureWarning")
@pytest.mark.parametrize("options", [{"collect": "batched"}, {"apply": "backward"}], ids=str)
def test_what_a_compiled_trunk_cannot_do_is_told(options) -> None:
    """Inductor's kernels take no batch of gradients."""
    net, trunk = compiled_trunk("inductor")
    optimizer = MTLOptimizer(torch.optim.SGD(net.parameters(), lr=0.05), "cagrad", **options)
    z = torch.tanh(trunk(next(iter(batches(1)))))
    losses = [(head(z) - t - 1).square().mean() for t, head in enumerate(net.heads)]
    with pytest.raises(RuntimeError, match="cannot batch this model's backward"):
        optimizer.backward(losses)
    assert all(param.grad is None for param in net.parameters())


# torch's own: where a graph breaks, it looks at the .grad of what it hands over.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.parametrize("named", [False, True])
def test_torch_compile_around_backward_leaves_it_as_it_is(named: bool) -> None:
    """Without compile_step the graph breaks there, and its forward tells no heads from a trunk."""
    torch._dynamo.reset()
    net, twin = Net(), Net()
    optimizer, other = (
        MTLOptimizer(
            torch.optim.SGD(n.parameters(), lr=0.05),
            "cagrad",
            shared=[n.trunk.weight] if named else None,
        )
        for n in (net, twin)
    )

    def step(x: Tensor) -> Tensor:
        z = torch.tanh(net.trunk(x))
        losses = [(head(z) - t - 1).square().mean() for t, head in enumerate(net.heads)]
        return optimizer.backward(losses).weights

    x = next(iter(batches(1)))
    if not named:
        with pytest.raises(ValueError, match=r"torch.compile'd function.*shared="):
            torch.compile(step, backend="aot_eager")(x)
        assert all(param.grad is None for param in net.parameters())
        return
    weights = torch.compile(step, backend="aot_eager")(x)
    torch.testing.assert_close(weights, other.backward(twin(x)).weights)
    for a, b in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported, match="compile_step"):
        torch.compile(step, backend="aot_eager", fullgraph=True)(x)
