"""Means and words of steps in which only some numbers are known."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mtlkernels import SI, GradDrop, Monitor, MTLOptimizer, Report, Sum, backward, ops
from mtlkernels.monitoring import figures, records
from mtlkernels.monitoring.diagnosis import diagnose

CONFLICT = torch.tensor([[1.0, 0.0], [-1.0, 1.0]]).double()
NONE = torch.tensor([[2.0, 0.0], [2.0, 2.0]]).double()
UNKNOWN = torch.tensor([[1.0, 0.0], [torch.nan, 1.0]]).double()


def taken(steps: list[Tensor], every: int) -> list[Any]:
    """Records of `every` steps each."""
    monitor, found = Monitor(every=10**6), []
    for start in range(0, len(steps), every):
        for G in steps[start : start + every]:
            weights = torch.ones(len(G)).double()
            monitor(
                Report(tuple("abc"[: len(G)]), G @ G.T, weights, None, ops.task_status(G @ G.T))
            )
        found.append(monitor.flush())
    return found


def test_a_record_counts_for_the_steps_in_which_a_number_is_known() -> None:
    steps = [CONFLICT, UNKNOWN, UNKNOWN, UNKNOWN, NONE, NONE, NONE, NONE]
    found = taken(steps, every=4)
    assert [record["known"][0] for record in found] == [[1.0, 0.25], [1.0, 1.0]]
    each = taken(steps, every=1)
    for name in ("conflicts", "cosines", "norms", "weighted_norms", "shares", "projections"):
        torch.testing.assert_close(records.mean(found, name), records.mean(each, name))
    for name in ("conflict_rate", "norm_ratio", "direction_norm", "magnitude_similarity"):
        torch.testing.assert_close(records.mean(found, name), records.mean(each, name))
    assert records.mean(found, "conflicts")[0, 1] == pytest.approx(1 / 5)
    told = diagnose(found)
    assert "a / b conflict in 20 % of the 5 known steps, mean cosine" in told
    assert "conflict in 20 % of the steps, mean" in diagnose(taken([CONFLICT, *[NONE] * 4], 2))


def test_a_pair_that_is_known_counts_beside_one_that_is_not() -> None:
    good = torch.tensor([[1.0, 0.0], [-1.0, 1.0], [1.0, 1.0]]).double()
    bad = good.clone()
    bad[2] = torch.nan
    (record,) = taken([good, bad], every=2)
    assert record["known"] == [[1.0, 1.0, 0.5], [1.0, 1.0, 0.5], [0.5, 0.5, 0.5]]
    told = diagnose([record])
    assert "a / b conflict in 100 % of the steps, mean" in told
    steps = [bad] * 3 + [good]
    assert records.mean(taken(steps, 3), "conflict_rate") == pytest.approx(
        records.mean(taken(steps, 1), "conflict_rate").item()
    )


def test_steps_between_those_of_a_gram_method_are_not_counted() -> None:
    x = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    optimizer = MTLOptimizer(torch.optim.SGD([x], lr=0.0), Sum(), every=3)
    monitor, found = Monitor(every=10**6), []
    for step in range(8):
        sign = -1.0 if step < 4 else 1.0  # measured are steps 0 and 3, then 6
        monitor(optimizer.backward({"a": x[0] + x[1], "b": sign * x[0]}))
        if step in (3, 7):
            found.append(monitor.flush())
    assert [record["known"][0][1] for record in found] == [0.5, 0.25]
    assert "a / b conflict in 67 % of the 3 known steps," in diagnose(found)


def test_an_infinite_product_is_no_known_conflict() -> None:
    (record,) = taken([NONE, CONFLICT * 1e200], every=2)
    assert record["known"][0] == [0.5, 0.5]
    assert record["conflicts"][0][1] == 0


@pytest.mark.parametrize("bad", [("a",), ("a", "b")])
def test_gradients_that_are_never_finite_have_no_norms(bad) -> None:
    G = torch.eye(2).double()
    G[: len(bad)] = torch.nan
    told = diagnose(taken([G] * 4, every=2))
    assert "Fewer than two norms are known" in told
    assert "dominates" not in told
    assert "a: NON_FINITE in 2 of 2 records" in told
    assert f"Find the cause of the status of {', '.join(bad)}. Then: Record steps" in told


@pytest.mark.parametrize("method", [SI(), GradDrop()])
def test_a_method_without_norms_leads_to_the_advice_to_record_some(method) -> None:
    """Also where a loss was not finite once: the norms are not missing for that."""
    monitor, found = Monitor(), []
    for bad in (False, True, False):
        x = torch.ones(2, requires_grad=True)
        losses = [x.square().sum(), (x - 3).square().sum() * (torch.nan if bad else 1.0)]
        monitor(backward(losses, [x], method))
        found.append(monitor.flush())
    assert "NON_FINITE" in found[1]["status"][1]
    told = diagnose(found)
    assert "Fewer than two norms are known: a Gram method records those of finite gradients" in told
    assert "Record steps in which a Gram method, such as Sum(), has finite gradients." in told


def test_a_layer_s_pairs_are_those_that_reach_it() -> None:
    """And steps without one of them count for the others."""
    trunk = torch.tensor([[1.0, 0.0], [-1.0, 1.0], [1.0, 1.0]]).double()
    some = torch.tensor([[1.0, 0.0], [-1.0, 1.0], [0.0, 0.0]]).double()
    head = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]]).double()
    bad = trunk.clone()
    bad[1] = torch.nan
    monitor = Monitor(parts=("trunk", "some", "head"))
    for parts in ([trunk, some, head], [bad, some, head]):
        K = torch.stack([G @ G.T for G in parts])
        status = torch.zeros(3, dtype=torch.int64)
        monitor(Report(tuple("abc"), K, torch.ones(3, 3).double(), None, status))
    monitor(Report(tuple("abc"), None, None, None, status))  # reused weights
    found = [monitor.flush()]
    assert records.conflicts_by_part(found) == pytest.approx({"trunk": 1 / 4, "some": 1.0})
    told = diagnose(found)
    assert "100 % of the pairs conflict in layer some" in told
    assert "25 % of the pairs conflict in layer trunk" in told
    assert "layer head" not in told
    assert found[0]["parts"]["some"]["conflict_rate"] == pytest.approx(1 / 3)
    pytest.importorskip("matplotlib")
    axes = figures.conflict_rate_by_part(found)
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([1 / 4, 1.0])
    assert [text.get_text() for text in axes.get_yticklabels()] == ["trunk", "some"]


def report_of(K: Tensor) -> Report:
    status, weights = torch.zeros(len(K), dtype=torch.int64), torch.ones(len(K)).double()
    return Report(tuple("abc"[: len(K)]), K, weights, None, status)


def test_no_task_conflicts_with_itself() -> None:
    K = torch.tensor([[-1.0, -0.5, 1.0], [-0.5, 2.0, torch.nan], [1.0, torch.nan, torch.nan]])
    conflicts = report_of(K.double()).conflicts()
    expected = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, torch.nan], [0.0, torch.nan, torch.nan]])
    torch.testing.assert_close(conflicts, expected.double(), equal_nan=True)


def test_a_line_break_in_a_name_breaks_no_line() -> None:
    tasks, parts = ("a\nb", "c\u2028\x1b[1m", "dä e"), ("x\r\ny",)
    monitor = Monitor(parts=parts)
    K = torch.tensor([[[1.0, -0.5, 0.0], [-0.5, 1.0, 0.0], [0.0, 0.0, 1.0]]]).double()
    monitor(Report(tasks, K, torch.ones(1, 3).double(), None, torch.zeros(3, dtype=torch.int64)))
    told = diagnose([monitor.flush()])
    lines = [line.strip() for line in told.splitlines()]
    table = lines[lines.index("Tasks") + 2 :][:3]
    assert [line.split("  ")[0] for line in table] == [r"a\nb", r"c\u2028\x1b[1m", "dä e"]
    assert r"a\nb / c\u2028\x1b[1m conflict in 100 % of the steps" in told
    assert r"in layer x\r\ny" in told
