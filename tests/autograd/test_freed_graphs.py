"""What the loop over the tasks frees as it goes, and what it has to keep."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import pytest
import torch
from contract import Net
from torch import Tensor, nn

import mtlkernels
from mtlkernels import GradDrop, MTLOptimizer, PCGrad, Sum
from mtlkernels.autograd.overlap import needed_later

pytestmark = pytest.mark.usefixtures("one_thread")

X = [torch.randn(4, 5, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]


class Held:
    """Counts, at each backward of a watched loss, which tasks' saved memory is still there."""

    def __init__(self) -> None:
        self.saved: dict[int, list[weakref.ref[Tensor]]] = {}
        self.alive: list[list[int]] = []

    def watch(self, task: int, loss: Callable[[], Tensor]) -> Tensor:
        """The loss, whose graph's saved tensors are told apart by task."""
        own = self.saved.setdefault(task, [])

        def pack(tensor: Tensor) -> Tensor:
            copy = tensor.detach().clone()
            own.append(weakref.ref(copy))
            return copy

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept):
            found = loss()
        found.register_hook(lambda _: self.note())
        return found

    def note(self) -> None:
        gc.collect()
        living = [any(r() is not None for r in refs) for refs in self.saved.values()]
        self.alive.append([task for task, lives in zip(self.saved, living, strict=True) if lives])


def separate(model: Net, held: Held, tasks: int = 3) -> list[Tensor]:
    """A batch a task, and a forward pass each."""
    return [held.watch(t, lambda t=t: model(X[t])[t]) for t in range(tasks)]


@pytest.mark.parametrize("method", [Sum, PCGrad, GradDrop])
def test_graphs_of_separate_batches_go_one_by_one(method) -> None:
    model, held = Net(3), Held()
    losses = separate(model, held)
    mtlkernels.backward(losses, list(model.parameters()), method())
    assert held.alive == [[0, 1, 2], [1, 2], [2]]
    held.note()
    assert held.alive[-1] == []


def test_so_they_do_under_accumulation_and_in_16_bits_and_from_one_stack() -> None:
    for way in ("accumulate", "rows_dtype", "stack"):
        model, held = Net(3), Held()
        options = {"rows_dtype": torch.bfloat16} if way == "rows_dtype" else {}
        base = torch.optim.SGD(model.parameters(), lr=0.1)
        optimizer = MTLOptimizer(base, PCGrad(), check=False, **options)
        losses = separate(model, held)
        given = torch.stack(losses) if way == "stack" else losses
        optimizer.backward(given, accumulate=way == "accumulate")
        passes = [alive for alive in held.alive if alive][-3:]
        assert passes == [[0, 1, 2], [1, 2], [2]], way


def test_all_is_kept_where_that_is_asked_for() -> None:
    model, held = Net(3), Held()
    losses = separate(model, held)
    params = list(model.parameters())
    mtlkernels.backward(losses, params, Sum(), retain_graph=True)
    held.note()
    assert held.alive[-1] == [0, 1, 2]
    mtlkernels.backward(losses, params, Sum())
    with pytest.raises(RuntimeError, match="second time"):
        losses[0].backward()


def test_a_common_trunk_stays_until_its_last_task() -> None:
    """Tasks 0 and 2 share a batch, 1 and 3 have their own."""
    model, held = Net(4), Held()
    shared = held.watch(9, lambda: torch.tanh(model.trunk(X[0])))
    heads = model.heads

    def above(t: int, z: Tensor) -> Tensor:
        return held.watch(t, lambda: (heads[t](z) - t).square().mean())

    def alone(t: int) -> Tensor:
        return held.watch(t, lambda: (heads[t](torch.tanh(model.trunk(X[t]))) - t).square().mean())

    losses = [above(0, shared), alone(1), above(2, shared), alone(3)]
    want = torch.autograd.grad(sum(losses), model.trunk.weight, retain_graph=True)[0]
    assert needed_later(losses) == [True, False, False, False]
    mtlkernels.backward(losses, list(model.parameters()), Sum())
    torch.testing.assert_close(model.trunk.weight.grad, want)


def losses_that_share() -> dict[str, list[Tensor]]:
    a, b, c = (nn.Parameter(torch.full((3,), v)) for v in (1.0, 2.0, 3.0))
    z, penalty = (a * b).tanh(), a.square().sum()
    first = (z * b).sum()
    two = torch.stack([a * b, b * c]).exp()
    return {
        "a trunk": [z.sum(), (z * c).sum()],
        "a penalty": [(a * b).sum() + penalty, (a * c).sum() + penalty],
        "a penalty in all but the first": [(a * c).sum(), (a * b).sum() + penalty, penalty * 2],
        "one is computed from the other": [first, first.square(), (a * c).sum()],
        "the other way round": [first.square(), first, (a * c).sum()],
        "in a chain": [(a * b).exp().sum(), z.sum(), (z * c).sum() + penalty, penalty * 3],
        "a stack": list(torch.stack([(z * b).sum(), (z * c).sum()]).unbind()),
        "rows of one tensor": [two[0].sum(), two[1].sum()],
        "a parameter": [(a * b).sum(), a.sum(), a.square().sum()],
    }


@pytest.mark.parametrize("name", losses_that_share())
def test_no_graph_that_is_needed_is_freed(name: str) -> None:
    """The gradients are the losses' own, in every order, and twice where the graph is kept."""
    count = len(losses_that_share()[name])
    for turn in range(count):
        losses = losses_that_share()[name]
        losses = losses[turn:] + losses[:turn]
        params = _leaves(losses)
        options = {"shared": params}
        want = [torch.autograd.grad(sum(losses), p, retain_graph=True)[0] for p in params]
        mtlkernels.backward(losses, params, Sum(), retain_graph=True, **options)
        mtlkernels.backward(losses, params, Sum(), **options)
        for param, grad in zip(params, want, strict=True):
            torch.testing.assert_close(param.grad, 2 * grad)


def _leaves(losses: list[Tensor]) -> list[Tensor]:
    found: dict[int, Tensor] = {}
    todo = [loss.grad_fn for loss in losses]
    while todo:
        node = todo.pop()
        if node is None:
            continue
        leaf = getattr(node, "variable", None)
        if leaf is not None:
            found[id(leaf)] = leaf
        todo += [source for source, _ in node.next_functions]
    return list(found.values())


def test_parameters_alone_do_not_join_graphs() -> None:
    a, b = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    assert needed_later([(a * b).sum(), (a / b).sum(), a.sum()]) == [False] * 3
    assert needed_later([(a * b).sum()]) == [False]


def test_the_walk_is_short_where_graphs_branch_and_meet_again() -> None:
    """A residual network of 60 blocks: 2^60 ways through it."""
    a = nn.Parameter(torch.ones(3))

    def deep() -> Tensor:
        z = a * 2
        for _ in range(60):
            z = z + z.tanh()
        return z.sum()

    assert needed_later([deep(), deep()]) == [False, False]
