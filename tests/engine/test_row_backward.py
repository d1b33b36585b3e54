"""What backward, the optimizer and torch.compile make of row methods, and methods of one's own."""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Callable

import pytest
import torch
from row_cases import (
    STATEFUL,
    batch,
    keeping_rows,
    losses_of,
    with_state,
)
from torch import Tensor, nn

import mtlkernels
from mtlkernels import (
    DBMTL,
    SLW,
    ExcessMTL,
    GradDrop,
    LogLosses,
    Mean,
    MoCo,
    MTLOptimizer,
    RowMethod,
    RowStep,
    Tracked,
    TrimmedMean,
)

pytestmark = pytest.mark.usefixtures("one_thread")


# ------------------------------------------------------------------------- backward, optimizer


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Linear(6, 5)
        self.heads = nn.ModuleList(nn.Linear(5, 1) for _ in range(3))

    def forward(self, x: Tensor) -> list[Tensor]:
        features = torch.tanh(self.trunk(x))
        return [(head(features) - t).square().mean() + 0.1 for t, head in enumerate(self.heads)]


X = torch.randn(8, 6, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("make", [*STATEFUL.values(), TrimmedMean])
def test_backward_is_aggregate_on_the_trunk(make) -> None:
    model, twin = Model(), make()
    losses = model(X)
    trunk = list(model.trunk.parameters())
    rows = [list(torch.autograd.grad(loss, trunk, retain_graph=True)) for loss in losses]
    want, told = mtlkernels.aggregate(rows, twin, torch.stack(losses).detach())
    heads = [torch.autograd.grad(x, h.weight, retain_graph=True)[0]
             for x, h in zip(losses, model.heads, strict=True)]  # fmt: skip
    optimizer = MTLOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), make())
    report = optimizer.backward(losses)
    for param, direction in zip(trunk, want, strict=True):
        assert torch.equal(param.grad, direction)
    for head, grad in zip(model.heads, heads, strict=True):
        torch.testing.assert_close(head.weight.grad, grad)
    assert (report.weights is None) == (told.weights is None)
    assert (report.gram is None) == (told.gram is None)
    optimizer.step()


@pytest.mark.parametrize("make", [*STATEFUL.values(), TrimmedMean])
def test_a_second_backward_adds_in_place(make) -> None:
    model, method = Model(), make()
    params = list(model.parameters())
    mtlkernels.backward(model(X), params, method)
    before = [p.grad.clone() for p in params]
    addresses = [p.grad.data_ptr() for p in params]
    twin = copy.deepcopy(method)
    mtlkernels.backward(model(X), params, method)
    assert [p.grad.data_ptr() for p in params] == addresses
    other = copy.deepcopy(model)
    for p in other.parameters():
        p.grad = None
    mtlkernels.backward(other(X), list(other.parameters()), twin)
    for p, q, old in zip(params, other.parameters(), before, strict=True):
        torch.testing.assert_close(p.grad, old + q.grad)


def test_weight_heads_takes_the_weights_where_there_are_some() -> None:
    model = Model()
    losses = model(X)
    plain = [torch.autograd.grad(loss, h.bias, retain_graph=True)[0]
             for loss, h in zip(losses, model.heads, strict=True)]  # fmt: skip
    report = mtlkernels.backward(
        losses, list(model.parameters()), Tracked(SLW(), 0.5), weight_heads=True
    )
    for head, grad, weight in zip(model.heads, plain, report.weights, strict=True):
        torch.testing.assert_close(head.bias.grad, grad * weight.float())
    message = "weight_heads= does not apply to GradDrop: it has no weights"
    model = Model()
    with pytest.raises(ValueError, match=message):
        mtlkernels.backward(model(X), list(model.parameters()), GradDrop(), weight_heads=True)
    with pytest.raises(ValueError, match=message):
        MTLOptimizer(torch.optim.SGD(model.parameters()), GradDrop(), weight_heads=True)
    assert all(p.grad is None for p in model.parameters())


@with_state
def test_a_checkpoint_of_the_optimizer_carries_the_state(make) -> None:
    def train(optimizer: MTLOptimizer, model: Model, steps: int) -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            optimizer.backward(model(X))
            optimizer.step()

    model = Model()
    optimizer = MTLOptimizer(torch.optim.Adam(model.parameters(), lr=0.1), make())
    train(optimizer, model, 3)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved, other = torch.load(file, weights_only=True), Model()
    resumed = MTLOptimizer(torch.optim.Adam(other.parameters(), lr=0.1), make())
    other.load_state_dict(saved["model"])
    resumed.load_state_dict(saved["optimizer"])
    train(optimizer, model, 3)
    train(resumed, other, 3)
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)
    different = MTLOptimizer(torch.optim.Adam(Model().parameters()), mtlkernels.GradVac())
    with pytest.raises(ValueError, match="another method"):
        different.load_state_dict(saved["optimizer"])


# ------------------------------------------------------------------------ methods of one's own


class Own(RowMethod):
    """Answers with what it was set up with."""

    weighs = True

    def __init__(self, answer: Callable[[list[Tensor], int], RowStep]) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, lists, num_tasks, losses=None) -> RowStep:
        return self.answer(lists[0], num_tasks)


def median(grads: list[Tensor], T: int) -> RowStep:
    rows = torch.stack([grads[2 * t].reshape(-1) for t in range(T)])
    d = torch.nn.functional.pad(rows.median(dim=0).values, (0, 64 - 37))
    return RowStep([d], torch.ones(T).double(), torch.eye(T).double())


def test_a_method_of_ones_own() -> None:
    direction, report = mtlkernels.aggregate(batch(3, 0), Own(median))
    assert torch.equal(direction[0], torch.stack([r[0] for r in batch(3, 0)]).median(dim=0).values)
    assert report.status.tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda g, T: RowStep([g[0]], torch.ones(T)), "a flat direction for each gradient list"),
        (lambda g, T: RowStep([]), "a flat direction for each gradient list"),
        (lambda g, T: median(g, T)._replace(weights=None), "weights where its class says"),
        (lambda g, T: median(g, T)._replace(weights=torch.ones(2)), "a weight for each of 3"),
    ],
)
def test_an_answer_that_is_none(answer, message: str) -> None:
    with pytest.raises(ValueError, match=f"Own must return {message}"):
        mtlkernels.aggregate(batch(3, 0), Own(answer))


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="no task reaches any parameter"):
        mtlkernels.aggregate([[None], [None]], GradDrop())
    with pytest.raises(ValueError, match="method is a GradDrop, not a Gram method"):
        Tracked(GradDrop())
    with pytest.raises(ValueError, match="method is a Tracked, not a Gram method"):
        LogLosses(Tracked(Mean()))
    for beta in (-0.1, 1.0, math.nan):
        with pytest.raises(ValueError, match="beta="):
            Tracked(Mean(), beta)
        with pytest.raises(ValueError, match="beta="):
            DBMTL(beta)
    with pytest.raises(ValueError, match="sigma=-1"):
        Tracked(Mean(), sigma=-1)
    with pytest.raises(ValueError, match="beta=0: it must be in"):
        MoCo(0)
    with pytest.raises(ValueError, match="gamma=nan: it must be finite"):
        MoCo(gamma=math.nan)
    for options in ({"project": "box"}, {"rows": "losses"}):
        with pytest.raises(ValueError, match="choose"):
            MoCo(**options)
    for options in ({"eta": 0}, {"warmup": 0}, {"eps": -1}, {"reduction": "max"}):
        with pytest.raises(ValueError, match=f"{next(iter(options))}="):
            ExcessMTL(**options)


@pytest.mark.parametrize("make", [lambda: GradDrop(0.3), lambda: TrimmedMean(1)])
def test_methods_by_element_compile_into_one_graph(make) -> None:
    torch._dynamo.reset()
    eager, other = make(), make()

    @torch.compile(backend="aot_eager", fullgraph=True)
    def step(grads: list[Tensor]) -> Tensor:
        return other([grads], 3).directions[0]

    for call in range(4):
        grads = [g for row in batch(3, call) for g in row if g is not None and g.dim() == 1]
        with torch.compiler.set_stance("fail_on_recompile" if call >= 2 else "default"):
            assert torch.equal(step(grads), eager([grads], 3).directions[0])


@keeping_rows
def test_methods_with_rows_compile_into_one_graph_after_their_first_step(make) -> None:
    torch._dynamo.reset()
    eager, method = make(), make()
    grads = [[g for row in batch(3, k) for g in row if g is not None and g.dim() == 1]
             for k in range(5)]  # fmt: skip
    for each in (eager, method):
        each([grads[0]], 3, losses_of(3))

    @torch.compile(backend="aot_eager", fullgraph=True)
    def step(grads: list[Tensor], losses: Tensor) -> Tensor:
        return method([grads], 3, losses).directions[0]

    for call in range(1, 5):
        with torch.compiler.set_stance("fail_on_recompile" if call >= 3 else "default"):
            got = step(grads[call], losses_of(3))
        assert torch.equal(got, eager([grads[call]], 3, losses_of(3)).directions[0])
