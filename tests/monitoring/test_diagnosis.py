"""`python -m mtlkernels report`: the words are true of the gradients that the log came from."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from mtlkernels import SI, AvgNorm, Monitor, Report, backward, ops
from mtlkernels.__main__ import main
from mtlkernels.monitoring.diagnosis import diagnose

STEPS = 12


def records_of(G: Tensor, tasks: str = "abc", method: Any = None, parts: tuple = ()) -> list[Any]:
    """A record a step of gradients G (S, T, N), or by part (S, B, T, N)."""
    monitor, found = Monitor(every=1000, parts=parts), []
    for rows in G.double():
        gram = rows @ rows.mT
        weights = torch.ones(gram.shape[:-1]).double() if method is None else method(gram)
        status = ops.task_status(gram if gram.dim() == 2 else gram.sum(dim=0))
        monitor(Report(tuple(tasks), gram, weights, None, status))
        found.append(monitor.flush())
    return found


def orthogonal(*norms: float) -> Tensor:
    """(STEPS, T, T) gradients of these norms without any conflict."""
    return torch.diag(torch.tensor(norms, dtype=torch.float64)).repeat(STEPS, 1, 1)


def sections(text: str) -> dict[str, str]:
    """Heading -> what stands below it."""
    found = {}
    for block in text.split("\n\n"):
        heading, _, body = block.partition("\n")
        found[heading.strip()] = body
    return found


def test_the_dominating_task_is_named_with_its_lead() -> None:
    told = diagnose(records_of(orthogonal(1, 8, 2)))
    assert "b dominates by norm: its gradient is 4 times as long as that of c" in told
    assert "and 8 times that of a" in told
    assert f"b dominates the direction: {round(100 * 64 / 69)} %" in told
    assert "93 % of it; an equal share is 33 %." in told
    assert "AvgNorm" in sections(told)["Try next"]
    assert "PCGrad" not in sections(told)["Try next"]


def test_no_task_dominates_where_none_does() -> None:
    told = diagnose(records_of(orthogonal(1, 1.2, 1.1)))
    assert "No task dominates by norm: b's gradient is 1.09 times as long as that of c and" in told
    assert "and 1.2 times that of a." in told
    assert "No task dominates the direction" in told
    assert "No two tasks conflict." in told
    assert "Little to gain" in sections(told)["Try next"]
    told = diagnose(records_of(orthogonal(10, 9, 1)))
    assert "No task dominates by norm: a's gradient is 1.11 times as long as that of b" in told
    assert "and 10 times that of c." in told
    assert "AvgNorm" in sections(told)["Try next"]


def test_weights_that_even_the_norms_out_are_seen() -> None:
    told = diagnose(records_of(orthogonal(1, 8, 2), method=AvgNorm()))
    assert "b dominates by norm" in told
    assert "No task dominates the direction: the largest share is a's, 33 %" in told
    assert "the weights even the norms out" in sections(told)["Try next"]


def test_conflicts_by_pair_how_often_and_how_strongly() -> None:
    G = torch.tensor([[1.0, 0.0, 0.0], [-3.0, 4.0, 0.0], [0.0, 0.0, 1.0]]).repeat(STEPS, 1, 1)
    G[: STEPS // 4, 2, 1] = -0.1  # b / c conflict in a quarter of the steps, and hardly
    told = diagnose(records_of(G))
    lines = sections(told)["Conflicts"].splitlines()
    assert lines[0].strip() == "a / b conflict in 100 % of the steps, mean cosine -0.60"
    assert lines[1].strip() == "b / c conflict in 25 % of the steps, mean cosine -0.02"
    assert len(lines) == 2
    assert "a / c" not in told
    assert "AvgNorm" in sections(told)["Try next"]  # 5 times apart too
    assert "PCGrad or CAGrad, as the mean cosine of a / b is -0.60" in sections(told)["Try next"]
    G[:, 1] /= 5
    advice = sections(diagnose(records_of(G)))["Try next"]
    assert "PCGrad or CAGrad, as the mean cosine of a / b is -0.60" in advice
    assert "AvgNorm" not in advice


def test_unrelated_gradients_are_no_reason_to_act() -> None:
    """They conflict in every other step, at cosines around 0."""
    G = torch.randn(60, 3, 400, generator=torch.Generator().manual_seed(0))
    told = diagnose(records_of(G))
    assert "% of the steps" in sections(told)["Conflicts"]
    assert "Little to gain" in sections(told)["Try next"]


def test_layers_are_ranked_by_conflict() -> None:
    quiet, loud = torch.eye(2).repeat(STEPS, 1, 1), torch.eye(2).repeat(STEPS, 1, 1)
    loud[: STEPS // 2, 1, 0] = -1
    G = torch.stack([quiet, loud, torch.zeros_like(quiet)], dim=1)
    told = diagnose(records_of(G, "ab", parts=("early", "late", "head")))
    where = sections(told)["Where in the network"]
    assert where.strip() == "50 % of the pairs conflict in layer late"
    assert "Not known" in sections(diagnose(records_of(quiet, "ab")))["Where in the network"]


def test_layers_that_are_not_shown_are_counted() -> None:
    quiet, loud = torch.eye(2).repeat(STEPS, 1, 1), torch.eye(2).repeat(STEPS, 1, 1)
    loud[:, 1, 0] = -1
    names = tuple(f"layer{i}" for i in range(15))
    for conflicting, shown, said in (
        (0, 0, "No two tasks conflict in a layer"),
        (3, 3, None),
        (12, 10, "2 more layers, none with more conflicts"),
    ):
        layers = [loud] * conflicting + [quiet] * (15 - conflicting)
        told = diagnose(records_of(torch.stack(layers, dim=1), "ab", parts=names))
        where = sections(told)["Where in the network"]
        assert where.count("of the pairs conflict in layer") == shown
        assert ("more layers" in where) == (conflicting > shown)
        assert said is None or said in where


def test_pairs_that_are_not_shown_are_counted() -> None:
    """All six tasks conflict with each other: fifteen pairs."""
    G = torch.eye(6).repeat(STEPS, 1, 1) - 0.2
    conflicts = sections(diagnose(records_of(G, "abcdef")))["Conflicts"]
    assert conflicts.count("conflict in 100 % of the steps") == 10
    assert "5 more pairs, none more often" in conflicts


def test_weights_against_a_task_are_lengths_too() -> None:
    """Weighted gradients 100 times apart are not evened out by a minus sign."""
    told = diagnose(
        records_of(orthogonal(10, 1), "ab", lambda K: torch.tensor([1.0, -0.1]).double())
    )
    assert "AvgNorm" in sections(told)["Try next"]


def test_a_run_under_avgnorm_is_evened_whatever_its_norms_do() -> None:
    G = orthogonal(1, 1, 1)
    G[::2, 0, 0] = 1000
    monitor, method = Monitor(), AvgNorm("harmonic")
    for rows in G.double():
        K = rows @ rows.T
        monitor(Report(tuple("abc"), K, method(K), None, ops.task_status(K)))
    assert "even the norms out" in sections(diagnose([monitor.flush()]))["Try next"]


def test_a_task_that_runs_against_the_direction_is_named() -> None:
    G = torch.tensor([[1.0, 0.0], [-0.4, 0.1]]).repeat(STEPS, 1, 1)
    assert "The direction is against b" in diagnose(records_of(G, "ab"))


def test_flags_are_told_and_come_first() -> None:
    G = orthogonal(1, 8, 2)
    G[:3, 2, 2] = torch.nan
    G[0, 0] = 0
    told = diagnose(records_of(G))
    assert "a: ZERO_GRADIENT in 1 of 12 records" in sections(told)["Status"]
    assert "c: NON_FINITE in 3 of 12 records" in sections(told)["Status"]
    advice = sections(told)["Try next"]
    assert "Find the cause of the status of c. Then: AvgNorm" in advice
    assert sections(diagnose(records_of(orthogonal(1, 2, 3))))["Status"].strip() == "none"


@pytest.mark.parametrize(
    ("norms", "sentence"),
    [
        ((0, 0, 0), "No task dominates by norm: the gradients of a, b, c are zero."),
        ((0, 2, 0), "b dominates by norm: the gradients of a, c are zero."),
        ((0, 1, 4), "4 times as long as that of b; the gradients of a are zero."),
    ],
)
def test_zero_gradients(norms, sentence) -> None:
    assert sentence in diagnose(records_of(orthogonal(*norms)))
    advice = sections(diagnose(records_of(orthogonal(*norms))))["Try next"]
    assert "no gradient of a" in advice
    assert "AvgNorm" not in advice


def test_one_task_and_no_gradients_are_told() -> None:
    assert "One task: there is nothing to balance" in diagnose(records_of(orthogonal(2), "a"))
    x = torch.ones(2, requires_grad=True)
    monitor = Monitor()
    monitor(backward([x.sum() ** 2, (x - 3).square().sum()], [x], SI()))
    told = diagnose([monitor.flush()])
    assert "Fewer than two norms are known" in told
    assert "Sum()" in sections(told)["Try next"]


def run(path, *more: str) -> int:
    return main(["report", str(path), *more])


def test_the_command_prints_and_draws(tmp_path, capsys) -> None:
    pytest.importorskip("matplotlib")
    log = tmp_path / "run.jsonl"
    log.write_text("".join(_lines(orthogonal(1, 8, 2))))
    assert run(log) == 0
    assert "b dominates by norm" in capsys.readouterr().out
    assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")
    log.write_text("".join(_lines(orthogonal(1, 8, 2)) * 2))
    assert run(log, "--out", str(tmp_path / "page.pdf")) == 0
    told = capsys.readouterr().out
    assert "restarts of the step count: 1;" in told
    assert str(tmp_path / "page.pdf") in told
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")


def _lines(G: Tensor) -> list[str]:
    return [json.dumps(record) + "\n" for record in records_of(G)]


@pytest.mark.parametrize(
    ("content", "more", "sentence"),
    [
        (None, [], "does not exist"),
        ("", [], "is empty"),
        ("{\n", [], "line 1 is broken"),
        ("good", ["--out", "no/such/folder/page.png"], "cannot be saved"),
        ("good", ["--out", "page.abc"], "abc"),
        ("good", ["--out", "run.jsonl"], "is the log itself"),
        ("folder", [], "cannot be read"),
    ],
)
def test_bad_files_are_one_sentence(content, more, sentence, tmp_path, capsys, monkeypatch) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    good = "".join(_lines(orthogonal(1, 2, 3)))
    if content == "folder":
        (tmp_path / "run.jsonl").mkdir()
    elif content is not None:
        (tmp_path / "run.jsonl").write_text(good if content == "good" else content)
    assert run("run.jsonl", *more) == 2
    told = capsys.readouterr().err.strip()
    assert sentence in told
    assert "\n" not in told
    if content == "good":
        assert (tmp_path / "run.jsonl").read_text() == good


def test_without_matplotlib_the_words_are_printed(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    (tmp_path / "run.jsonl").write_text("".join(_lines(orthogonal(1, 8, 2))))
    assert run(tmp_path / "run.jsonl") == 1
    told = capsys.readouterr()
    assert "b dominates by norm" in told.out
    assert told.err.strip().endswith("pip install 'mtlkernels[plot]'")
