"""python -m benchmarks --suites steps: a row with numbers for each way to take a step."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks.choices import CHOICES, EXACT, PLAIN, ROWS, SLOW_TO_COMPILE
from benchmarks.models import MODELS
from benchmarks.suite.command import main
from benchmarks.suite.providers import PROVIDERS

SMALL = ["--suites", "steps", "--threads", "1", "--seconds", "0.01"]


def test_each_way_to_take_a_step_has_a_row_and_those_that_are_exact_agree(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torchjd")
    threads, saved = torch.get_num_threads(), tmp_path / "run.json"
    try:
        one = ["--models", "narrow", "--tasks", "2", "--methods", "upgrad", "--json", str(saved)]
        assert main([*SMALL, *one]) == 0
    finally:
        torch.set_num_threads(threads)
    printed = capsys.readouterr().out
    rows = {row["name"]: row for row in json.loads(saved.read_text())["rows"]}
    assert set(rows) == set(CHOICES) - set(SLOW_TO_COMPILE)
    for name, row in rows.items():
        assert min(row["seconds"]) > 0, row.get("told")
        assert row["thread"] > 0
        assert row["peak"] > 0
        assert name in printed
    for name in set(EXACT) - {ROWS}:
        assert rows[name]["error"] < 1e-5, name


def test_choices_are_asked_for_by_name(tmp_path: Path) -> None:
    threads, saved = torch.get_num_threads(), tmp_path / "run.json"
    try:
        asked = ["--models", "deep", "--tasks", "3", "--choices", "ours,textbook loop"]
        assert main([*SMALL, *asked, "--json", str(saved)]) == 0
    finally:
        torch.set_num_threads(threads)
    rows = json.loads(saved.read_text())["rows"]
    assert [row["name"] for row in rows] == [PLAIN, "ours", "textbook loop"]


def test_memory_is_a_table_of_ways_and_numbers_of_tasks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    threads, saved = torch.get_num_threads(), tmp_path / "run.json"
    try:
        asked = ["--suites", "memory", "--models", "wide", "--tasks", "2,4"]
        asked += ["--choices", 'ours,ours collect="ghost"', "--methods", "upgrad"]
        assert main([*asked, "--threads", "1", "--json", str(saved)]) == 0
    finally:
        torch.set_num_threads(threads)
    peaks = {(r["name"], r["tasks"]): r["peak"] for r in json.loads(saved.read_text())["rows"]}
    assert set(peaks) == {(n, T) for n in (PLAIN, ROWS, 'ours collect="ghost"') for T in (2, 4)}
    # Twice as many tasks need twice the task gradients, and ghosts store none of wide layers.
    assert peaks[ROWS, 4] > 1.5 * peaks[ROWS, 2]
    assert peaks['ours collect="ghost"', 4] < 0.6 * peaks[ROWS, 4]
    assert "T = 4" in capsys.readouterr().out


def test_names_that_are_listed_by_commas_hold_none() -> None:
    assert not [name for name in (*CHOICES, *MODELS, *PROVIDERS) if "," in name]


@pytest.mark.parametrize("model", MODELS)
def test_losses_of_every_model_share_its_trunk(model: str) -> None:
    if model in ("resnet18", "vit", "wide"):
        pytest.skip("large, and built as its small one is")
    work = MODELS[model](2)
    shared = [p for p in work.shared if p.requires_grad]
    for loss in work.losses():
        grads = torch.autograd.grad(loss, shared, retain_graph=True)
        assert all(grad.isfinite().all() for grad in grads)
