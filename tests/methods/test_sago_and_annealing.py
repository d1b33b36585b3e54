"""SAGO and LRAnnealing against their formulas, element by element."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import mtlkernels
from mtlkernels import SAGO, LRAnnealing

pytestmark = pytest.mark.usefixtures("one_thread")


def pairs(seed: int, n: int = 60) -> Tensor:
    """(2, n) with zeros of either sign in both."""
    G = torch.randn(2, n, generator=torch.Generator().manual_seed(seed)).double()
    G[0, :5], G[1, 3:8] = 0.0, -0.0
    return G


@pytest.mark.parametrize("prefer", [False, True])
@pytest.mark.parametrize(("gamma", "alpha"), [(1.0, 1.0), (0.5, 2.0)])
def test_sago_is_what_its_formula_says(prefer: bool, gamma: float, alpha: float) -> None:
    for seed in range(4):
        G = pairs(seed)
        want = []
        for r, f in G.T.tolist():
            conflict = r != 0 and f != 0 and math.copysign(1, r) != math.copysign(1, f)
            want.append(alpha * r if conflict else gamma * f + (alpha * r if prefer else 0.0))
        method = SAGO(gamma, alpha, prefer_retain=prefer)
        (d,), report = mtlkernels.aggregate([[g] for g in G], method)
        assert torch.equal(d, torch.tensor(want, dtype=torch.float64))
        assert report.weights is None


def test_sago_signs_do_not_underflow() -> None:
    G = torch.tensor([[1e-30], [-1e-30]])
    (d,), _ = mtlkernels.aggregate([[g] for g in G], SAGO())
    assert torch.equal(d, G[0])


def test_sago_of_several_parameters_and_absent_gradients() -> None:
    a, b = pairs(1, 12), pairs(2, 35)
    rows = [[a[0].view(3, 4), b[0].view(5, 7).T, None], [a[1].view(3, 4), None, b[1]]]
    direction, _ = mtlkernels.aggregate(rows, SAGO(prefer_retain=True))
    (whole,), _ = mtlkernels.aggregate([[a[0]], [a[1]]], SAGO(prefer_retain=True))
    assert torch.equal(direction[0].reshape(-1), whole)
    assert torch.equal(direction[1], b[0].view(5, 7).T)
    assert torch.equal(direction[2], b[1])


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("task", [0, 1])
def test_sago_lets_what_is_not_finite_through(value: float, task: int) -> None:
    G = pairs(3)
    G[task, 30] = value
    (d,), _ = mtlkernels.aggregate([[g] for g in G], SAGO())
    assert not d[30].isfinite()
    assert d.isfinite().sum() == len(d) - 1


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="two tasks, retain and forget, not 3"):
        mtlkernels.aggregate([[g] for g in torch.ones(3, 2)], SAGO())
    with pytest.raises(ValueError, match="gamma=nan"):
        SAGO(math.nan)
    with pytest.raises(ValueError, match=r"alpha=1\.5"):
        LRAnnealing(1.5)
    with pytest.raises(ValueError, match="ref_key=-1"):
        LRAnnealing(ref_key=-1)


def rows(T: int, seed: int) -> list[list[Tensor | None]]:
    """Two parameters, of which task 1 reaches the first alone; other sizes of gradients."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for t in range(T):
        first, second = (torch.randn(n, generator=generator).double() * 10**t for n in (7, 20))
        made.append([first, None if t == 1 else second])
    return made


@pytest.mark.parametrize("ref", [0, 2])
def test_lr_annealing_step_by_step(ref: int) -> None:
    method, weights = LRAnnealing(0.3, ref_key=ref), torch.ones(3).double()
    for seed in range(5):
        given = rows(3, seed)
        means = [torch.cat([g for g in row if g is not None]).abs().mean() for row in given]
        weights = 0.7 * weights + 0.3 * means[ref] / torch.stack(means)
        direction, report = mtlkernels.aggregate(given, method)
        torch.testing.assert_close(report.weights, weights, rtol=1e-12, atol=0)
        for p in range(2):
            parts = [
                w * row[p] for w, row in zip(weights, given, strict=True) if row[p] is not None
            ]
            torch.testing.assert_close(direction[p], sum(parts), rtol=1e-12, atol=1e-12)
    fresh = LRAnnealing(0.3, ref_key=ref)
    fresh.load_state_dict(method.state_dict())
    assert torch.equal(fresh.weights, method.weights)


def test_lr_annealing_where_a_gradient_is_zero_or_not_finite() -> None:
    method = LRAnnealing(0.5)
    mtlkernels.aggregate(rows(3, 0), method)
    before = method.weights.clone()
    given = rows(3, 1)
    given[2] = [0 * g for g in given[2]]
    _, report = mtlkernels.aggregate(given, method)
    assert report.weights[2] == 0
    assert method.weights[2] == before[2]
    assert method.weights[1] != before[1]
    before = method.weights.clone()
    given[0] = [0 * g for g in given[0]]
    mtlkernels.aggregate(given, method)
    assert torch.equal(method.weights, before)
    given[1][0][3] = math.nan
    direction, report = mtlkernels.aggregate(given, method)
    assert report.weights.isnan().all()
    assert not direction[0].isfinite().any()
    assert torch.equal(method.weights, before)


def test_lr_annealing_by_name_follows_the_order() -> None:
    given = dict(zip("abc", rows(3, 4), strict=True))
    found = []
    for order in ("abc", "cab"):
        _, report = mtlkernels.aggregate(
            [given[n] for n in order], LRAnnealing(0.5, ref_key="b"), tasks=order
        )
        found.append(dict(zip(order, report.weights.tolist(), strict=True)))
    assert found[0] == found[1]
    assert found[0]["b"] == 1.0
