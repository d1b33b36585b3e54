"""A method a part of the parameters: each part is the method on that part alone."""

from __future__ import annotations

import copy

import pytest
import torch
from hard_grams import random_rows
from torch import Tensor, nn

import mtlkernels
from mtlkernels import (
    SI,
    AlignedMTL,
    CAGrad,
    GradNorm,
    GradVac,
    MTLOptimizer,
    PCGrad,
    PerPart,
    Status,
    Sum,
)

pytestmark = pytest.mark.usefixtures("one_thread")

INNER = {"GradVac": lambda: GradVac(0.5), "PCGrad": PCGrad, "CAGrad": CAGrad, "Aligned": AlignedMTL}
every_inner = pytest.mark.parametrize("inner", INNER.values(), ids=INNER.keys())
PARTS = [[2, 0], [1], [3, 4]]


def task_grads(seed: int) -> list[list[Tensor | None]]:
    shapes = [(3, 2), (5,), (1,), (4, 1), (2, 2)]
    rows = random_rows(3, 26, seed).float()
    rows = rows - 0.6 * rows.mean(dim=0)
    grads = []
    for row in rows:
        pieces = row.split([6, 5, 1, 4, 10])
        grads.append([p[: torch.Size(s).numel()].view(s) for p, s in zip(pieces, shapes)])  # noqa: B905
    grads[1][3] = None
    return grads


@every_inner
def test_each_part_is_the_method_on_that_part_alone(inner) -> None:
    """Over steps: each part has a state of its own."""
    method, alone = PerPart(inner()), [inner() for _ in PARTS]
    for step in range(3):
        grads = task_grads(step)
        direction, report = mtlkernels.aggregate(grads, method, parts=PARTS)
        assert report.weights.shape == (3, 3)
        assert report.gram.shape == (3, 3, 3)
        for b, part in enumerate(PARTS):
            own, told = mtlkernels.aggregate([[row[p] for p in part] for row in grads], alone[b])
            torch.testing.assert_close(report.weights[b], told.weights, rtol=0, atol=0)
            for p, expected in zip(part, own, strict=True):
                torch.testing.assert_close(direction[p], expected, rtol=0, atol=0)
        length = torch.stack([d.double().square().sum() for d in direction]).sum().sqrt()
        torch.testing.assert_close(report.direction_norm(), length, rtol=1e-6, atol=0)


def test_report_measures_over_all_parts() -> None:
    grads = task_grads(0)
    _, whole = mtlkernels.aggregate(grads, Sum())
    _, parted = mtlkernels.aggregate(grads, PerPart(Sum()), parts=PARTS)
    for name in ("norms", "cosines", "conflict_rate", "direction_norm"):
        torch.testing.assert_close(
            getattr(parted, name)(), getattr(whole, name)(), rtol=1e-6, atol=1e-7
        )
    assert parted.status.tolist() == [0, 0, 0]


def test_one_part_is_the_whole() -> None:
    grads = task_grads(1)
    got, report = mtlkernels.aggregate(grads, PerPart(CAGrad()), parts=[[0, 1, 2, 3, 4]])
    expected, plain = mtlkernels.aggregate(grads, CAGrad())
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a, b)
    assert torch.equal(report.weights[0], plain.weights)
    assert torch.equal(PerPart(CAGrad())(plain.gram), plain.weights)


def test_a_part_that_no_task_reaches_and_a_task_that_reaches_no_part() -> None:
    grads = task_grads(2)
    for row in grads:
        row[1] = None
    grads[2] = [None] * 5
    direction, report = mtlkernels.aggregate(grads, PerPart(GradVac()), parts=PARTS)
    assert direction[1] is None
    assert all(direction[p].isfinite().all() for p in (0, 2, 3, 4))
    assert report.status.tolist() == [0, 0, Status.ZERO_GRADIENT]
    assert report.gram[1].abs().max() == 0
    with pytest.raises(ValueError, match="no task reaches any parameter"):
        mtlkernels.aggregate([[None] * 5] * 3, PerPart(Sum()), parts=PARTS)


def test_a_gradient_that_is_not_finite_is_named() -> None:
    grads = task_grads(3)
    grads[1][4] = grads[1][4] * torch.nan
    direction, report = mtlkernels.aggregate(grads, PerPart(CAGrad()), parts=PARTS)
    assert report.status.tolist() == [0, Status.NON_FINITE, 0]
    assert direction[4].isnan().any()


@pytest.mark.parametrize(
    ("parts", "word"),
    [
        ([[0, 1], [2, 3]], "4 is in no part"),
        ([[0, 1, 2], [2, 3, 4]], "2 is in two parts"),
        ([[0, 1, 2], [3, 4, 5]], "5 does not exist"),
        ([[0, 1, 2], [3, 4, -1]], "-1 does not exist"),
    ],
)
def test_parts_that_are_no_partition(parts: list[list[int]], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        mtlkernels.aggregate(task_grads(0), PerPart(Sum()), parts=parts)


def test_the_number_of_parts_is_that_of_the_first_step() -> None:
    method = PerPart(Sum())
    mtlkernels.aggregate(task_grads(0), method, parts=[[0, 1], [2, 3, 4]])
    with pytest.raises(ValueError, match="has the state of 2 parts and got 3"):
        mtlkernels.aggregate(task_grads(0), method, parts=PARTS)
    with pytest.raises(ValueError, match="has the state of 2 parts and got 1"):
        method(torch.eye(3).double())
    with pytest.raises(ValueError, match="method is a str"):
        PerPart("gradvac")


@every_inner
def test_a_resume_checks_the_number_of_parts(inner) -> None:
    method = PerPart(inner())
    mtlkernels.aggregate(task_grads(0), method, parts=PARTS)
    saved = method.state_dict()
    if not saved:  # a method without state has none for a part either
        return
    other = PerPart(inner())
    mtlkernels.aggregate(task_grads(0), other, parts=[[0, 1], [2, 3, 4]])
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(ValueError, match=r"saved for 3 parts, and this PerPart has 2.*Nothing was"):
        other.load_state_dict(saved)
    assert all(torch.equal(x, before[key]) for key, x in other.state_dict().items())
    fresh = PerPart(inner())
    fresh.load_state_dict(saved)
    with pytest.raises(ValueError, match="has the state of 3 parts and got 2"):
        mtlkernels.aggregate(task_grads(0), fresh, parts=[[0, 1], [2, 3, 4]])
    unused = PerPart(inner())
    unused.load_state_dict(PerPart(inner()).state_dict())  # of no step: any number of parts
    mtlkernels.aggregate(task_grads(0), unused, parts=PARTS)


def test_a_first_step_without_some_tasks_sizes_every_part() -> None:
    """Each part's state is that of a method that saw the part alone."""
    method, alone = PerPart(GradVac(0.5)), [GradVac(0.5) for _ in PARTS]
    for step, present in enumerate(([0, 2], [0, 1, 2], [1, 2])):
        grads = task_grads(step)
        with method.for_tasks("abc", present) if step else _sized(method, present):
            rows = [grads[t] for t in present]
            grams = [_gram([[row[p] for p in part] for row in rows]) for part in PARTS]
            weights = method(torch.stack(grams))
        for b, own in enumerate(alone):
            with own.for_tasks("abc", present):
                torch.testing.assert_close(weights[b], own(grams[b]), rtol=0, atol=0)


def _sized(method: PerPart, present: list[int]):
    method.for_parts(len(PARTS))
    return method.for_tasks("abc", present)


def _gram(rows: list[list[Tensor | None]]) -> Tensor:
    return mtlkernels.aggregate(rows, Sum())[1].gram


@every_inner
def test_state_survives_saving_and_copying(inner) -> None:
    method = PerPart(inner())
    for step in range(3):
        mtlkernels.aggregate(task_grads(step), method, parts=PARTS)
    fresh, copied = PerPart(inner()), copy.deepcopy(method)
    fresh.load_state_dict(method.state_dict())
    _, expected = mtlkernels.aggregate(task_grads(9), method, parts=PARTS)
    for other in (fresh, copied):
        _, got = mtlkernels.aggregate(task_grads(9), other, parts=PARTS)
        assert torch.equal(got.weights, expected.weights)


def test_losses_reach_every_part() -> None:
    losses = torch.tensor([1.0, 2.0, 3.0])
    _, report = mtlkernels.aggregate(task_grads(0), PerPart(GradNorm()), losses, parts=PARTS)
    assert report.weights.isfinite().all()


# ------------------------------------------------------------------------------ from losses on


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 5), nn.Linear(5, 3)
        self.heads = nn.ModuleList(nn.Linear(3, 1) for _ in range(3))

    def forward(self, x: Tensor) -> list[Tensor]:
        z = torch.tanh(self.second(torch.tanh(self.first(x))))
        return [(head(z) - t).square().mean() for t, head in enumerate(self.heads)]

    def layers(self) -> list[list[nn.Parameter]]:
        return [list(layer.parameters()) for layer in (self.first, self.second)]


@pytest.fixture
def model() -> Model:
    torch.manual_seed(0)
    return Model()


def test_backward_a_layer(model: Model) -> None:
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(1))
    rows = [
        torch.autograd.grad(loss, [p for layer in model.layers() for p in layer], retain_graph=True)
        for loss in model(x)
    ]
    expected, _ = mtlkernels.aggregate(rows, PerPart(PCGrad()), parts=[[0, 1], [2, 3]])
    method = PerPart(PCGrad())
    params = list(model.parameters())
    report = mtlkernels.backward(model(x), params, method, parts=model.layers())
    for param, want in zip(params, expected, strict=False):
        assert torch.equal(param.grad, want)
    assert report.weights.shape == (2, 3)
    heads = model(x)
    for head, loss in zip(model.heads, heads, strict=True):
        (own,) = torch.autograd.grad(loss, [head.weight])
        torch.testing.assert_close(head.weight.grad, own)


def test_an_optimizer_a_layer_accumulates_and_saves(model: Model) -> None:
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(1))

    def wrapped(model: Model) -> torch.optim.Optimizer:
        base = torch.optim.SGD(model.parameters(), lr=0.1)
        return MTLOptimizer(base, PerPart(GradVac(0.5)), parts=model.layers())

    optimizer = wrapped(model)
    optimizer.backward(model(x))
    once = [p.grad.clone() for p in model.first.parameters()]
    address = model.first.weight.grad.data_ptr()
    optimizer.backward(model(x))
    assert model.first.weight.grad.data_ptr() == address
    assert not torch.equal(model.first.weight.grad, once[0])
    again = copy.deepcopy(model)
    other = wrapped(again)
    other.load_state_dict(optimizer.state_dict())
    first, second = optimizer.backward(model(x)), other.backward(again(x))
    assert torch.equal(first.weights, second.weights)


def test_an_optimizer_with_other_parts_refuses_the_state(model: Model) -> None:
    def wrapped(parts: list[list[nn.Parameter]]) -> torch.optim.Optimizer:
        base = torch.optim.SGD(model.parameters(), lr=0.1)
        return MTLOptimizer(base, PerPart(GradVac()), parts=parts)

    saved = wrapped(model.layers()).state_dict()
    wrapped(model.layers()).load_state_dict(saved)
    with pytest.raises(ValueError, match="saved for 2 parts, and this PerPart has 1"):
        wrapped([list(model.parameters())]).load_state_dict(saved)


def test_words_of_backward(model: Model) -> None:
    x, params = torch.ones(2, 4), list(model.parameters())
    first, second = model.layers()
    with pytest.raises(ValueError, match="each of the 4 shared parameters once: 2 of its"):
        mtlkernels.backward(model(x), params, PerPart(Sum()), parts=[first])
    with pytest.raises(ValueError, match="parts= does not apply to SI"):
        mtlkernels.backward(model(x), params, SI(), parts=[first, second])
    with pytest.raises(ValueError, match="weight_heads= needs one weight a task"):
        MTLOptimizer(
            torch.optim.SGD(params, lr=1.0),
            PerPart(Sum()),
            parts=[first, second],
            weight_heads=True,
        )
    with pytest.raises(ValueError, match="weight_heads= needs one weight a task"):
        mtlkernels.backward(
            model(x), params, PerPart(Sum()), parts=[first, second], weight_heads=True
        )
    assert all(p.grad is None for p in params)
