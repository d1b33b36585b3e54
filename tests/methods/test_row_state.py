"""Averages as long as the gradients belong to parameters: layers that a step does not reach."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from row_cases import keeping_rows
from torch import Tensor, nn

import mtlkernels
from mtlkernels import ExcessMTL, MoCo, MTLOptimizer, RowMethod, Sum, Tracked

pytestmark = pytest.mark.usefixtures("one_thread")


class LayerDrop(nn.Module):
    """Layers of one size, of which a step takes some."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(4, 4, dtype=torch.float64) for _ in range(3))
        self.heads = nn.ModuleList(nn.Linear(4, 1, dtype=torch.float64) for _ in range(2))

    def forward(self, x: Tensor, chosen: str) -> dict[str, Tensor]:
        for i in chosen:
            x = x + self.layers[int(i)](x).tanh()
        return {n: (h(x) - 1).square().mean() + 1 for n, h in zip("ab", self.heads, strict=True)}


def made(method: RowMethod) -> tuple[LayerDrop, MTLOptimizer]:
    model = LayerDrop()
    return model, MTLOptimizer(torch.optim.SGD(model.parameters(), lr=0.05), method)


X = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
STEPS = ["012", "02", "01", "2", "12", "012"]


def test_each_layer_keeps_its_own_average() -> None:
    """The direction is the sum of averages that each layer's gradients make, where it has any."""
    beta = 0.8
    model, optimizer = made(Tracked(Sum(), beta))
    averages: dict[int, Tensor] = {}
    for chosen in STEPS:
        optimizer.zero_grad()
        losses = model(X, chosen)
        for i in map(int, chosen):
            weight = model.layers[i].weight
            g = torch.stack(
                [
                    torch.autograd.grad(loss, weight, retain_graph=True)[0]
                    for loss in losses.values()
                ]
            )
            averages[i] = beta * averages.get(i, torch.zeros_like(g)) + (1 - beta) * g
        optimizer.backward(losses)
        for i, layer in enumerate(model.layers):
            if str(i) in chosen:
                torch.testing.assert_close(layer.weight.grad, averages[i].sum(dim=0))
            else:
                assert layer.weight.grad is None
        optimizer.step()


@keeping_rows
def test_a_layer_s_state_is_not_another_s(make: Any) -> None:
    """What is kept of a layer that a step does not reach stays, bit for bit."""
    model, optimizer = made(make())
    optimizer.backward(model(X, "012"))
    method = optimizer.method
    kept = {p: rows.clone() for p, rows in by_parameter(method).items()}
    assert set(kept) == set(range(6))
    optimizer.zero_grad()
    optimizer.backward(model(X, "02"))
    after = by_parameter(method)
    for p in (2, 3):  # the second layer
        assert torch.equal(after[p], kept[p])
    for p in (0, 1, 4, 5):
        assert not torch.equal(after[p], kept[p])


def by_parameter(method: Any) -> dict[int, Tensor]:
    """The rows that a method keeps, by the parameter's position."""
    found = {}
    for name, group in zip(method._row_names(), method._layout, strict=True):
        offsets = mtlkernels.ops.flat_offsets([n for _, n in group])
        for (p, n), at in zip(group, offsets, strict=False):
            found[p] = getattr(method, name)[:, at : at + n]
    for name, rows in method.named_buffers():
        if name.startswith("rows_of_"):
            found[int(name.removeprefix("rows_of_"))] = rows
    return found


@keeping_rows
@pytest.mark.parametrize("at", [1, 3])
def test_a_resume_with_layers_missing_changes_no_bit(make: Any, at: int) -> None:
    model, optimizer = made(make())
    for chosen in STEPS[:at]:
        optimizer.zero_grad()
        optimizer.backward(model(X, chosen))
        optimizer.step()
    file = io.BytesIO()
    torch.save([model.state_dict(), optimizer.state_dict()], file)
    file.seek(0)
    saved = torch.load(file)
    other, fresh = made(make())
    other.load_state_dict(saved[0])
    fresh.load_state_dict(saved[1])
    twin = copy.deepcopy((model, optimizer))
    for chosen in STEPS[at:]:
        for m, o in ((model, optimizer), (other, fresh), twin):
            o.zero_grad()
            losses = m(X, chosen)
            o.backward(losses if m is model else {n: losses[n] for n in "ba"})
            o.step()
    for a, b, c in zip(*(m.parameters() for m in (model, other, twin[0])), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)


@keeping_rows
def test_absent_tasks_and_layers_together(make: Any) -> None:
    model, optimizer = made(make())
    optimizer.backward(model(X, "012"))
    before = {p: rows.clone() for p, rows in by_parameter(optimizer.method).items()}
    for chosen in ("012", "01"):
        losses = {**model(X, chosen), "c": (model.layers[0](X)).square().mean() + 1, "b": None}
        optimizer.backward(losses)  # a task that is new, and one that is not there
    after = by_parameter(optimizer.method)
    assert optimizer.method.task_names == ("a", "b", "c")
    for p, rows in before.items():
        assert after[p].shape == (3, rows.shape[1])
        assert torch.equal(after[p][1], rows[1])
    assert not after[0][2].equal(torch.zeros_like(after[0][2]))
    assert after[4][2].abs().sum() == 0  # the new task does not reach the third layer


def test_frozen_parameters_do_not_shift_the_others() -> None:
    model, optimizer = made(MoCo())
    optimizer.backward(model(X, "012"))
    before = {p: rows.clone() for p, rows in by_parameter(optimizer.method).items()}
    model.layers[0].requires_grad_(False)
    optimizer.backward(model(X, "012"))
    after = by_parameter(optimizer.method)
    assert all(torch.equal(after[p], before[p]) for p in (0, 1))
    assert not any(torch.equal(after[p], before[p]) for p in (2, 3, 4, 5))


def test_another_list_of_parameters_is_refused() -> None:
    model, method = LayerDrop(), ExcessMTL()
    mtlkernels.backward(model(X, "01"), list(model.parameters()), method)
    rows = by_parameter(method)[0].clone()
    reached = [*model.layers[1].parameters(), *model.heads.parameters()]
    with pytest.raises(
        ValueError, match=r"parameter 0 of the list is not that of earlier steps.*reset\(\)"
    ):
        mtlkernels.backward(model(X, "01"), reached, method)
    assert torch.equal(by_parameter(method)[0], rows)
    method.reset()
    mtlkernels.backward(model(X, "01"), reached, method)


def test_a_parameter_of_another_size_is_refused() -> None:
    method = MoCo()
    rows = [[torch.ones(4), torch.ones(2)], [torch.ones(4), torch.ones(2)]]
    mtlkernels.aggregate(rows, method)
    with pytest.raises(ValueError, match=r"parameter 1 has 3 numbers, not 2.*use a new method"):
        mtlkernels.aggregate([[torch.ones(4), torch.ones(3)]] * 2, method)
    mtlkernels.aggregate([[torch.ones(4), None]] * 2, method)
    assert by_parameter(method)[1].shape == (2, 2)


def test_old_state_without_a_layout_is_that_of_the_next_step() -> None:
    method, old = MoCo(), MoCo()
    G = torch.randn(2, 2, 6, generator=torch.Generator().manual_seed(0)).double()
    mtlkernels.aggregate([[g] for g in G[0]], method)
    state = method.state_dict()
    del state["row_parameters"], state["task_names"]
    old.load_state_dict(state)
    first = mtlkernels.aggregate([[g] for g in G[1]], method)[0][0]
    assert torch.equal(first, mtlkernels.aggregate([[g] for g in G[1]], old)[0][0])
