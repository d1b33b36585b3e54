"""Diagnostics from K against the gradients themselves; records of their averages in every sink."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor

import mtlkernels
from mtlkernels import JSONL, SI, CAGrad, FixedWeights, Monitor, PerPart, Report, Status, Sum


def report_of(G: Tensor, weights: Tensor, losses: Tensor | None = None) -> Report:
    status = torch.zeros(len(G), dtype=torch.int64)
    return Report(tuple("abc"[: len(G)]), G @ G.T, weights, losses, status)


@pytest.fixture
def gradients() -> Tensor:
    return torch.randn(3, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_diagnostics_are_those_of_the_gradients(gradients) -> None:
    w = torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64)
    report, d = report_of(gradients, w), w @ gradients
    norms = gradients.norm(dim=1)
    close = torch.testing.assert_close
    close(report.norm_ratio(), norms.max() / norms.min())
    close(report.projections(), gradients @ d / d.norm())
    close(report.shares(), w * (gradients @ d) / (d @ d))
    close(report.shares().sum(), torch.tensor(1.0, dtype=torch.float64))
    close(report.condition_number(), torch.linalg.cond(gradients))
    for i in range(3):
        for j in range(3):
            a, b = gradients[i], gradients[j]
            cosine = a @ b / a.norm() / b.norm()
            similar = 2 * a.norm() * b.norm() / (a @ a + b @ b)
            close(report.magnitude_similarity()[i, j], similar)
            if i != j:
                bound = (1 - cosine**2) * (a - b).square().sum() / (a + b).square().sum()
                close(report.curvature_bound()[i, j], bound)
    assert report.curvature_bound().diagonal().abs().max() < 1e-12


def test_diagnostics_of_parts_are_those_of_the_whole(gradients) -> None:
    parts = [gradients[:, :3], gradients[:, 3:]]
    weights = torch.tensor([[1.0, 0.5, 2.0], [0.3, 1.0, 1.0]], dtype=torch.float64)
    grams = torch.stack([part @ part.T for part in parts])
    report = Report(tuple("abc"), grams, weights, None, torch.zeros(3, dtype=torch.int64))
    d = torch.cat([w @ part for w, part in zip(weights, parts, strict=True)])
    torch.testing.assert_close(report.projections(), gradients @ d / d.norm())
    own = [
        torch.cat([w[t] * part[t] for w, part in zip(weights, parts, strict=True)])
        for t in range(3)
    ]
    torch.testing.assert_close(report.shares(), torch.stack(own) @ d / (d @ d))
    torch.testing.assert_close(report.direction_norm(), d.norm())


def test_zero_gradients_give_no_nan(gradients) -> None:
    gradients[1] = 0
    report = report_of(gradients, torch.ones(3, dtype=torch.float64))
    for name in ("projections", "shares", "magnitude_similarity", "curvature_bound"):
        assert getattr(report, name)().isfinite().all(), name
    assert report.norm_ratio() == math.inf
    still = report_of(torch.zeros(2, 4, dtype=torch.float64), torch.ones(2, dtype=torch.float64))
    assert (still.shares() == 0).all()
    assert (still.projections() == 0).all()


class Writer:
    """A sink as TensorBoard's, or with `log` as Weights & Biases' run."""

    def __init__(self) -> None:
        self.got: dict[int, dict[str, float]] = {}

    def put(self, name: str, value: float, step: int) -> None:
        self.got.setdefault(step, {})[name] = value


class TensorBoard(Writer):
    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        self.put(tag, scalar_value, global_step)


class Run(Writer):
    def log(self, data: dict[str, float], step: int) -> None:
        for name, value in data.items():
            self.put(name, value, step)


def test_records_are_means_and_every_sink_has_them(tmp_path) -> None:
    torch.manual_seed(1)
    board, run = TensorBoard(), Run()
    monitor = Monitor(JSONL(tmp_path / "r.jsonl"), board, run, every=3)
    reports = []
    for _ in range(7):
        G, w, losses = torch.randn(2, 5).double(), torch.rand(2).double(), torch.rand(2)
        reports.append(report_of(G, w, losses))
        monitor(reports[-1])
    last = monitor.flush()
    assert monitor.flush() is None
    records = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    assert [(r["step"], r["steps"]) for r in records] == [(3, 3), (6, 3), (7, 1)]
    assert records[-1] == last
    for record, seen in zip(records, (reports[:3], reports[3:6], reports[6:]), strict=True):
        for name, ask in {
            "norms": Report.norms,
            "cosines": Report.cosines,
            "conflict_rate": Report.conflict_rate,
            "dominated_conflict": lambda r: r.dominated_conflict().double(),
            "alignment": Report.alignment,
            "shares": Report.shares,
            "projections": Report.projections,
            "magnitude_similarity": Report.magnitude_similarity,
            "curvature_bound": Report.curvature_bound,
            "direction_norm": Report.direction_norm,
            "weights": lambda r: r.weights,
            "losses": lambda r: r.losses.double(),
        }.items():
            mean = torch.stack([ask(r) for r in seen]).mean(dim=0)
            got = torch.tensor(record[name], dtype=torch.float64)
            torch.testing.assert_close(got, mean, rtol=1e-6, atol=1e-12)
        for writer in (board, run):
            got_scalars = writer.got[record["step"]]
            assert got_scalars["norms/b"] == record["norms"][1]
            assert got_scalars["cosines/a/b"] == record["cosines"][0][1]
            assert got_scalars["weights/a"] == record["weights"][0]
            assert got_scalars["conflict_rate"] == record["conflict_rate"]
        assert board.got[record["step"]].keys() == run.got[record["step"]].keys()


def test_a_bad_step_is_named_and_does_not_spoil_the_means(tmp_path) -> None:
    monitor = Monitor(JSONL(tmp_path / "r.jsonl"), every=2)
    good = torch.randn(2, 5, dtype=torch.float64)
    for G in (good, good * torch.tensor([[1.0], [math.inf]], dtype=torch.float64)):
        weights = CAGrad()(G @ G.T)
        status = mtlkernels.ops.task_status(G @ G.T)
        monitor(Report(("a", "b"), G @ G.T, weights, None, status))
    (line,) = (tmp_path / "r.jsonl").read_text().splitlines()
    record = json.loads(line)
    assert record["norms"] == pytest.approx(good.norm(dim=1).tolist())
    assert record["losses"] == [None, None]
    assert record["status"] == [[], ["NON_FINITE"]]


def test_every_kind_of_report_is_taken() -> None:
    """Loss methods know no gradients, parts have several weights, kept weights come without K."""
    trunk, heads = torch.nn.Linear(3, 4), [torch.nn.Linear(4, 1) for _ in range(2)]
    params = [p for module in (trunk, *heads) for p in module.parameters()]
    parts = [[trunk.weight], [trunk.bias]]
    reused = mtlkernels.Reused(Sum(), 2)
    for method, options in (
        (SI(), {}),
        (PerPart(Sum()), {"parts": parts}),
        (PerPart(FixedWeights([1.0, 2.0])), {"parts": parts}),
        (reused, {}),
        (reused, {}),
        (mtlkernels.GradDrop(), {}),
    ):
        monitor = Monitor()
        losses = [(head(trunk(torch.randn(6, 3))) - 2).square().mean() for head in heads]
        report = mtlkernels.backward(losses, params, method, **options)
        monitor(report)
        record = monitor.flush()
        assert record["losses"] == pytest.approx([loss.item() for loss in losses])
        assert math.isnan(record["norms"][0]) == (report.gram is None)
        assert math.isnan(record["weights"][0]) == (report.weights is None)


def test_weights_of_parts_that_differ_in_a_step_are_no_task_s() -> None:
    """Not the mean over those steps in which they happen to agree."""
    monitor, grams = Monitor(), torch.eye(2).double().repeat(2, 1, 1)
    alike, apart = torch.ones(2, 2).double(), torch.tensor([[1.0, 2.0], [1.0, 3.0]]).double()
    for rows in (alike, apart, alike):
        monitor(Report(("a", "b"), grams, rows, None, torch.zeros(2, dtype=torch.int64)))
    record = monitor.flush()
    assert all(map(math.isnan, record["weights"]))
    lengths = [math.sqrt(2), (2 * math.sqrt(2) + math.sqrt(13)) / 3]
    assert record["weighted_norms"] == pytest.approx(lengths)


def test_an_unknown_pair_is_no_pair_without_conflict() -> None:
    K = torch.tensor([[1.0, -0.5, math.nan], [-0.5, 1.0, math.nan], [math.nan] * 3]).double()
    status = torch.zeros(3, dtype=torch.int64)
    assert Report(tuple("abc"), K, None, None, status).conflict_rate() == 1
    nothing = Report(tuple("abc"), K * math.nan, None, None, status)
    assert nothing.conflict_rate().isnan()


def test_a_file_is_continued_whatever_it_ends_with(tmp_path) -> None:
    report = report_of(torch.eye(2).double(), torch.ones(2).double())
    path = tmp_path / "r.jsonl"
    path.write_text('{"step": 1, "ta')  # a crash in the middle of a line
    for _ in range(2):
        Monitor(JSONL(path), every=1)(report)
    assert [line[:8] for line in path.read_text().split("\n")] == ['{"step":'] * 3 + [""]


def test_every_flag_has_its_name() -> None:
    monitor = Monitor()
    flags = list(Status)
    status = torch.tensor([flag.value for flag in flags])
    names = tuple(flag.name for flag in flags)
    monitor(Report(names, None, None, None, status))
    assert monitor.flush()["status"] == [[name] for name in names]


def test_a_progress_bar_gets_losses_and_weights() -> None:
    report = report_of(torch.eye(2).double(), torch.ones(2).double(), torch.tensor([0.25, 2.0]))
    assert Monitor().postfix(report) == {
        "loss a": "0.25",
        "loss b": "2",
        "weight a": "1",
        "weight b": "1",
    }


@pytest.mark.parametrize("sink", [object(), "run.csv", 3])
def test_what_is_no_sink_is_told(sink: Any) -> None:
    with pytest.raises(TypeError, match="add_scalar"):
        Monitor(sink)


def test_wrong_use_is_told() -> None:
    for every in (0, 2.5):
        with pytest.raises(ValueError, match="whole number"):
            Monitor(every=every)
    monitor = Monitor()
    monitor(report_of(torch.eye(2).double(), torch.ones(2).double()))
    with pytest.raises(ValueError, match="a monitor for each set of tasks"):
        monitor(report_of(torch.eye(3).double(), torch.ones(3).double()))


def test_parts_stand_in_the_record_and_in_every_sink(tmp_path) -> None:
    G = torch.randn(2, 2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    board = TensorBoard()
    sinks = (JSONL(tmp_path / "r.jsonl"), board)
    monitor = Monitor(*sinks, every=2, parts=["early", "late"])
    weights = torch.ones(2, 3, dtype=torch.float64)
    reports = [
        Report(tuple("abc"), g @ g.mT, weights, None, torch.zeros(3, dtype=torch.int64)) for g in G
    ]
    for report in reports:
        monitor(report)
    record = json.loads((tmp_path / "r.jsonl").read_text())
    assert list(record["parts"]) == ["early", "late"]
    assert record["weights"] == [1, 1, 1]
    for b, part in enumerate(record["parts"].values()):
        assert part["norms"] == pytest.approx(G[:, b].norm(dim=-1).mean(dim=0).tolist())
        rates = [(K[[0, 0, 1], [1, 2, 2]] < 0).double().mean() for K in (G[:, b] @ G[:, b].mT)]
        assert part["conflict_rate"] == pytest.approx(sum(rates).item() / 2)
        assert part["cosines"][0][0] == pytest.approx(1)
    assert board.got[2]["late/norms/c"] == record["parts"]["late"]["norms"][2]
    assert board.got[2]["early/cosines/a/b"] == record["parts"]["early"]["cosines"][0][1]


def test_conflicts_are_how_often_two_tasks_did(tmp_path) -> None:
    rows = [[[1.0, 0.0], [-1.0, 1.0]], [[1.0, 0.0], [1.0, 1.0]], [[1.0, 0.0], [-2.0, 0.0]]]
    monitor = Monitor()
    for G in torch.tensor([*rows, [[1.0, 0.0], [math.nan, 0.0]]], dtype=torch.float64):
        monitor(report_of(G, torch.ones(2, dtype=torch.float64)))
    assert monitor.flush()["conflicts"][0][1] == pytest.approx(2 / 3)


def test_parts_that_do_not_fit_are_told() -> None:
    with pytest.raises(ValueError, match="name of its own"):
        Monitor(parts=["a", "a"])
    grams = torch.eye(2).double().repeat(3, 1, 1)
    status = torch.zeros(2, dtype=torch.int64)
    report = Report(("x", "y"), grams, torch.ones(3, 2).double(), None, status)
    with pytest.raises(ValueError, match=r"2 parts .* is of 3"):
        Monitor(parts=["a", "b"])(report)
    monitor = Monitor(parts=["a", "b"])
    monitor(report_of(torch.eye(2).double(), torch.ones(2).double()))
    assert math.isnan(monitor.flush()["parts"]["a"]["conflict_rate"])
