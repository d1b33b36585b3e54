"""Heads that the graph does not tell from shared parameters are said to look like heads."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtlkernels import MTLOptimizer

BATCH, TASKS, STEPS = 6, 3, 20


class Net(nn.Module):
    """A trunk and three heads of one output each."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 5))
        self.heads = nn.ModuleList(nn.Linear(5, 1) for _ in range(TASKS))
        self.gates = nn.ParameterList(nn.Parameter(torch.zeros(())) for _ in range(TASKS))

    def joined(self, x: Tensor) -> Tensor:
        z = self.trunk(x)
        return torch.cat([head(z) for head in self.heads], dim=1)


class OneFunction(torch.autograd.Function):
    """All heads in one node."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(z, *weights)
        return tuple(z @ weight.T for weight in weights)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        z, *weights = ctx.saved_tensors
        pairs = list(zip(grads, weights, strict=True))
        return sum(g @ w for g, w in pairs), *(g.T @ z for g, _ in pairs)


class TwoHeads(nn.Module):
    """What torch.jit.script makes one node of."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk, self.a, self.b = nn.Linear(4, 5), nn.Linear(5, 1), nn.Linear(5, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = torch.tanh(self.trunk(x))
        return torch.tanh(self.a(z)), torch.sigmoid(self.b(z))


def mask(t: int) -> Tensor:
    return torch.eye(TASKS, dtype=torch.bool)[t].expand(BATCH, TASKS)


def per_task(of: Callable[[Tensor, int], Tensor]) -> Callable[[Net, Tensor, int], list[Tensor]]:
    def losses(net: Net, x: Tensor, step: int) -> list[Tensor]:
        out = net.joined(x)
        return [of(out, t).square().sum() for t in range(TASKS)]

    return losses


def of_function(net: Net, x: Tensor, step: int) -> list[Tensor]:
    outs = OneFunction.apply(net.trunk(x), *(head.weight for head in net.heads))
    return [(out - 1).square().mean() for out in outs]


def mixed_samples(net: Net, x: Tensor, step: int) -> list[Tensor]:
    """Samples of all tasks in a batch, other ones in each step; sometimes none of a task."""
    out = net.joined(x)
    task = torch.randint(TASKS if step % 3 else TASKS - 1, (BATCH,))
    picked = (out * nn.functional.one_hot(task, TASKS)).sum(1)
    return [((picked - 1).square() * (task == t)).sum() for t in range(TASKS)]


HIDDEN: dict[str, Callable[[Net, Tensor, int], list[Tensor]]] = {
    "where": per_task(lambda out, t: torch.where(mask(t), out, 0.0)),
    "masked_fill": per_task(lambda out, t: out.masked_fill(~mask(t), 0.0)),
    "padded sum": per_task(lambda out, t: (out * mask(t)).sum(1)),
    "one-hot product": per_task(lambda out, t: out @ torch.eye(TASKS)[t]),
    "einsum": per_task(lambda out, t: torch.einsum("bt,t->b", out, torch.eye(TASKS)[t])),
    "one Function": of_function,
    "mixed samples": mixed_samples,
}


def run(
    losses: Callable[[Net, Tensor, int], Sequence[Tensor]],
    net: Net,
    steps: int = STEPS,
    accumulate: int = 0,
    lr: Callable[[int], float] = lambda step: 0.05,
    **options: Any,
) -> list[str]:
    """What is warned of."""
    base = torch.optim.SGD(net.named_parameters(), lr=0.05)
    optimizer = MTLOptimizer(base, "mgda", **options)
    torch.manual_seed(1)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for step in range(steps):
            optimizer.zero_grad()
            for _ in range(accumulate):
                optimizer.backward(losses(net, torch.randn(BATCH, 4), step), accumulate=True)
            if accumulate:
                optimizer.combine()
            else:
                optimizer.backward(losses(net, torch.randn(BATCH, 4), step))
            base.param_groups[0]["lr"] = lr(step)
            optimizer.step()
    return [str(warning.message) for warning in told if "look like" in str(warning.message)]


@pytest.mark.parametrize("losses", HIDDEN.values(), ids=list(HIDDEN))
@pytest.mark.parametrize("accumulate", [0, 2])
def test_heads_that_the_graph_hides_are_named_once(losses: Any, accumulate: int) -> None:
    net = Net()
    told = run(losses, net, accumulate=accumulate)
    assert len(told) == 1
    count = 3 if losses is of_function else 6
    assert told[0].startswith(
        f"{count} of the parameters that several tasks reach look like heads: heads.0.w"
    )
    assert "heads.0.weight of '0'" in told[0]
    assert "heads.1.weight of '1'" in told[0]
    assert "trunk.0" not in told[0]
    assert "shared=" in told[0]


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_heads_of_a_scripted_model_are_named() -> None:
    net = torch.jit.script(TwoHeads())
    told = run(lambda net, x, step: [out.mean() for out in net(x)], net)
    assert len(told) == 1
    said = "4 of the parameters that several tasks reach look like heads: a.weight of '0'"
    assert told[0].startswith(said)
    assert told[0].endswith("as a hinge penalty may be, all is well")


def test_named_parameters_and_check_false_say_nothing() -> None:
    for options in ({"check": False}, {"shared": Net().trunk.parameters()}):
        net = Net()
        if "shared" in options:
            options = {"shared": net.trunk.parameters()}
        assert not run(HIDDEN["where"], net, **options)


def plain(net: Net, x: Tensor, step: int) -> list[Tensor]:
    z = net.trunk(x)
    return [(head(z) - t).square().mean() for t, head in enumerate(net.heads)]


def empty_mask(net: Net, x: Tensor, step: int) -> list[Tensor]:
    """One task has labels in few batches, one in none."""
    labelled = [1.0, float(step % 5 == 4), 0.0]
    pairs = zip(plain(net, x, step), labelled, strict=True)
    return [loss * factor for loss, factor in pairs]


def dead(net: Net, x: Tensor, step: int) -> list[Tensor]:
    """A head whose activation is dead for long: its task does not move the trunk."""
    z = net.trunk(x)
    first = torch.relu(net.heads[0](z) - 100.0).square().mean()
    return [first, *((head(z) - 1).square().mean() for head in list(net.heads)[1:])]


def gated(net: Net, x: Tensor, step: int) -> list[Tensor]:
    """Tasks read the end of the trunk through gates that begin at zero, and its input layer."""
    early = torch.tanh(net.trunk[0](x))
    z = net.trunk[2](early)
    outs = [head(early + gate * z) for head, gate in zip(net.heads, net.gates, strict=True)]
    outs[0] = net.heads[0](early + z)
    return [(out - t).square().mean() for t, out in enumerate(outs)]


def hinge(net: Net, x: Tensor, step: int) -> list[Tensor]:
    first, *others = plain(net, x, step)
    return [torch.relu(first - 0.9), *others]


FINE = {"plain": plain, "empty mask": empty_mask, "dead": dead, "gated": gated, "hinge": hinge}


@pytest.mark.parametrize("losses", FINE.values(), ids=list(FINE))
@pytest.mark.parametrize("start", ["random", "zero heads", "one zero head"])
def test_sound_models_raise_no_false_alarm(losses: Any, start: str) -> None:
    net = Net()
    for head in [] if start == "random" else list(net.heads)[: 1 if start[0] == "o" else None]:
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
    assert not run(losses, net, steps=70)


def test_a_warm_up_from_nothing_and_steps_without_an_update_raise_none() -> None:
    net = Net()
    assert not run(gated, net, steps=40, lr=lambda step: 0.0 if step < 4 else 0.05)
    net = Net()
    optimizer = MTLOptimizer(torch.optim.SGD(net.parameters(), lr=0.05), "mgda")
    for step in range(30):  # the parameters stay as they are
        optimizer.backward(gated(net, torch.randn(BATCH, 4), step))
