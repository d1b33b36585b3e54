"""Graphs that bear one backward pass: a sentence, and the ways that work."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from mtlkernels import MTLOptimizer, compile_step

pytestmark = pytest.mark.usefixtures("one_thread")

Run = Callable[[nn.Module, Tensor], Tensor]


def selective(trunk: nn.Module, x: Tensor) -> Tensor:
    saved = partial(create_selective_checkpoint_contexts, [torch.ops.aten.addmm.default])
    return checkpoint(trunk, x, use_reentrant=False, context_fn=saved)


def offloaded(trunk: nn.Module, x: Tensor, error: type[Exception]) -> Tensor:
    """Hands each activation out once, as torchtune and TRL do; the libraries raise differently."""
    tracker: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> int:
        tracker[len(tracker)] = tensor.detach()
        return len(tracker) - 1

    def unpack(number: int) -> Tensor:
        tensor, tracker[number] = tracker[number], None
        if tensor is None:
            name = "Untracked tensor with id " if error is ValueError else ""
            raise error(f"{name}{number}")
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        return trunk(x)


def on_cpu(trunk: nn.Module, x: Tensor) -> Tensor:
    with torch.autograd.graph.save_on_cpu():
        return trunk(x)


ONE_PASS: dict[str, Run] = {
    "selective": selective,
    "ValueError": partial(offloaded, error=ValueError),
    "AssertionError": partial(offloaded, error=AssertionError),
    "KeyError": partial(offloaded, error=KeyError),
}
PLAIN: dict[str, Run] = {
    "checkpoint": lambda trunk, x: checkpoint(trunk, x, use_reentrant=False),
    "save_on_cpu": on_cpu,
}


class Net(nn.Module):
    def __init__(self, run: Run) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.run = run
        self.trunk = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 7), nn.Tanh())
        self.heads = nn.ModuleList(nn.Linear(7, 1) for _ in range(3))

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        z = self.run(self.trunk, x)
        return z, [(head(z) - t).square().mean() for t, head in enumerate(self.heads)]


X = torch.randn(4, 5, generator=torch.Generator().manual_seed(1))


def wrapped(run: Run, how: str) -> tuple[Net, MTLOptimizer]:
    net = Net(run)
    options: dict[str, Any] = {
        "loop": {},
        "batched": {"collect": "batched"},
        "features": {},
        "measure": {"measure": list(net.trunk[2].parameters())},
        "apply": {"apply": "backward"},
        "every": {"every": 2},
    }[how]
    return net, MTLOptimizer(torch.optim.SGD(net.parameters(), lr=0.1), "sum", **options)


def assert_plain_gradients(net: Net) -> None:
    plain = Net(lambda trunk, x: trunk(x))
    sum(plain(X)[1]).backward()
    for a, b in zip(net.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize("how", ["loop", "measure", "apply", "every"])
@pytest.mark.parametrize("name", ONE_PASS)
def test_a_graph_that_bears_one_pass_is_refused_with_what_to_do(name: str, how: str) -> None:
    net, optimizer = wrapped(ONE_PASS[name], how)
    with pytest.raises(RuntimeError, match=r'give features= .* collect="batched"') as raised:
        optimizer.backward(net(X)[1])
    assert isinstance(raised.value.__cause__, Exception)
    assert str(raised.value.__cause__) not in str(raised.value)
    assert all(param.grad is None for param in net.trunk.parameters())


@pytest.mark.parametrize("how", ["batched", "features"])
@pytest.mark.parametrize("name", ONE_PASS)
def test_one_pass_is_enough_with_features_and_a_batched_backward(name: str, how: str) -> None:
    net, optimizer = wrapped(ONE_PASS[name], how)
    z, losses = net(X)
    optimizer.backward(losses, **({"features": z} if how == "features" else {}))
    assert_plain_gradients(net)


@pytest.mark.parametrize("how", ["loop", "batched", "features", "measure", "apply", "every"])
@pytest.mark.parametrize("name", PLAIN)
def test_what_the_sentence_recommends_works(name: str, how: str) -> None:
    net, optimizer = wrapped(PLAIN[name], how)
    z, losses = net(X)
    optimizer.backward(losses, **({"features": z} if how == "features" else {}))
    assert_plain_gradients(net)


def test_an_error_of_the_first_pass_is_the_person_s_own() -> None:
    class Faulty(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            raise KeyError("mine")

    net, optimizer = wrapped(lambda trunk, x: Faulty.apply(trunk(x)), "loop")
    with pytest.raises(KeyError, match="mine"):
        optimizer.backward(net(X)[1])


@pytest.mark.parametrize("name", ["checkpoint", "selective"])
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compile_step_of_a_checkpoint_works_or_says_so(name: str, backend: str) -> None:
    """Which of the two is torch's: its eager backend recomputes a plain checkpoint each time."""
    torch._dynamo.reset()
    net, optimizer = wrapped({**PLAIN, **ONE_PASS}[name], "loop")
    step = compile_step(lambda x: optimizer.backward(net(x)[1]), backend=backend)
    raised: RuntimeError | None = None
    try:
        step(X)
    except RuntimeError as error:
        raised = error
    if raised is None:
        assert_plain_gradients(net)
        return
    assert (name, backend) != ("checkpoint", "eager")
    assert "leave the checkpoint out, or compile the model alone" in str(raised)
    assert raised.__cause__ is not None
    assert all(param.grad is None for param in net.parameters())
