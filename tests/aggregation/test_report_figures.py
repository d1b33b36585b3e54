"""Figures of a report that come from the Gram matrix alone: alignment, dominated conflict."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mtlkernels import Monitor, Report, Status


def report_of(G: Tensor, absent: tuple[int, ...] = ()) -> Report:
    tasks = tuple("abcdef"[: len(G)])
    status = torch.zeros(len(G), dtype=torch.int64)
    status[list(absent)] = Status.ABSENT.value
    return Report(tasks, G @ G.T, None, None, status)


def gradients(T: int, seed: int) -> Tensor:
    return torch.randn(T, 9, generator=torch.Generator().manual_seed(seed)).double()


@pytest.mark.parametrize("T", [1, 2, 3, 6])
def test_alignment_is_the_length_of_the_mean_unit_gradient(T: int) -> None:
    for seed in range(10):
        G = gradients(T, seed) * torch.logspace(-3, 3, T).double()[:, None]
        mean = (G / G.norm(dim=1, keepdim=True)).mean(dim=0)
        score = report_of(G).alignment()
        torch.testing.assert_close(score, 2 * mean.square().sum() - 1)
        if T == 2:
            torch.testing.assert_close(score, report_of(G).cosines()[0, 1])


def test_alignment_of_equal_opposite_zero_and_absent_gradients() -> None:
    g = gradients(1, 3)
    assert report_of(torch.cat([g, 2 * g, 3 * g])).alignment() == pytest.approx(1)
    assert report_of(torch.cat([g, -2 * g])).alignment() == pytest.approx(-1)
    G = gradients(3, 4)
    want = report_of(G[:2]).alignment()
    G[2] = 0
    torch.testing.assert_close(report_of(G).alignment(), want)
    torch.testing.assert_close(report_of(G, absent=(2,)).alignment(), want)
    assert report_of(0 * G).alignment().isnan()


def test_dominated_conflict_is_that_of_the_shortest_gradient() -> None:
    seen = set()
    for seed in range(40):
        G = gradients(3, seed) * torch.tensor([[1.0], [0.3], [3.0]]).double()
        shortest = G[G.norm(dim=1).argmin()]
        want = bool(shortest @ G.mean(dim=0) < 0)
        got = report_of(G).dominated_conflict()
        assert got.dtype == torch.bool
        assert got.shape == ()
        assert bool(got) == want
        seen.add(want)
    assert seen == {True, False}


def test_a_weak_conflict_alone_is_none() -> None:
    """The longer gradients conflict with the sum, the shortest does not."""
    G = torch.tensor([[0.0, 0.1], [1.0, 0.0], [-2.0, 0.0]]).double()
    assert not report_of(G).dominated_conflict()
    assert report_of(G[1:]).dominated_conflict()


def test_absent_zero_and_bad_gradients_are_no_dominated_conflict() -> None:
    G = torch.tensor([[0.0, 0.0], [1.0, 0.0], [-2.0, 0.0]]).double()
    assert not report_of(G).dominated_conflict()
    assert report_of(G, absent=(0,)).dominated_conflict()
    bad = G.clone()
    bad[2] = torch.nan
    assert not report_of(bad).dominated_conflict()
    monitor = Monitor()
    monitor(report_of(bad))
    monitor(report_of(G[1:].repeat(2, 1)[:3]))
    record = monitor.flush()
    assert record["dominated_conflict"] in (0.0, 1.0)  # of the step whose K is finite
