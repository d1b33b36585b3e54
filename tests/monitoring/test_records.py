"""Records come back from a file as they were written, and a bad file is told in one sentence."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import Tensor

from mtlkernels import JSONL, Monitor, Report
from mtlkernels.monitoring import records
from mtlkernels.monitoring.sinks import MATRICES, SCALARS, VECTORS


def written(path, G: Tensor, every: int = 2, tasks: str = "abc", parts: tuple = ()) -> None:
    """A log of steps with gradients G (S, T, N), or by part (S, B, T, N), and equal weights."""
    monitor = Monitor(JSONL(path), every=every, parts=parts)
    for rows in G.double():
        weights = torch.ones(rows.shape[:-1], dtype=torch.float64)
        status = torch.zeros(rows.shape[-2], dtype=torch.int64)
        monitor(Report(tuple(tasks), rows @ rows.mT, weights, None, status))
    monitor.flush()


def test_numbers_come_back(tmp_path) -> None:
    G = torch.randn(5, 3, 6, generator=torch.Generator().manual_seed(0)).double()
    written(tmp_path / "r.jsonl", G)
    found = records.read(tmp_path / "r.jsonl")
    norms = G.norm(dim=-1)
    expected = torch.stack([norms[:2].mean(dim=0), norms[2:4].mean(dim=0), norms[4]])
    torch.testing.assert_close(records.column(found, "norms"), expected)
    torch.testing.assert_close(records.mean(found, "norms"), norms.mean(dim=0))
    assert records.column(found, "losses").isnan().all()
    assert records.mean(found, "losses").isnan().all()
    assert records.steps_taken(found) == [2, 4, 5]
    assert records.live_parts(found) == []


def test_a_continued_run_grows_on(tmp_path) -> None:
    G = torch.ones(4, 3, 2)
    for _ in range(2):
        written(tmp_path / "r.jsonl", G)
    assert records.steps_taken(records.read(tmp_path / "r.jsonl")) == [2, 4, 6, 8]


def test_parts_that_no_task_reaches_are_not_live(tmp_path) -> None:
    G = torch.ones(4, 3, 3, 2)
    G[:, 1] = 0
    written(tmp_path / "r.jsonl", G, parts=("x", "y", "z"))
    found = records.read(tmp_path / "r.jsonl")
    assert records.live_parts(found) == ["x", "z"]
    assert records.mean(found, "norms", "z").tolist() == pytest.approx([math.sqrt(2)] * 3)


GOOD = {
    "step": 1,
    "steps": 1,
    "tasks": ["a", "b"],
    **{name: [1.0, 2.0] for name in VECTORS},
    **{name: [[1.0, 0.0], [0.0, 1.0]] for name in MATRICES},
    **dict.fromkeys(SCALARS, 1.0),
    "status": [[], []],
}
PART = {
    "norms": [1.0, 2.0],
    "cosines": GOOD["cosines"],
    "conflict_rate": None,
    "pairs": 1.0,
    "conflicting_pairs": 0.0,
}


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"step": 0}, "step is not a positive integer"),
        ({"steps": True}, "steps is not a positive integer"),
        ({"tasks": "ab"}, "no list of tasks"),
        ({"tasks": []}, "tasks are not names"),
        ({"status": [[]]}, "flags per task"),
        ({"status": [[], [{}]]}, "flags per task"),
        ({"norms": [1.0]}, "norms is missing or does not fit its 2 tasks"),
        ({"norms": [1.0, "2"]}, "norms is missing"),
        ({"cosines": [[1.0, 0.0], 1.0]}, "cosines is missing"),
        ({"conflict_rate": [0.0]}, "conflict_rate is missing"),
        ({"parts": []}, "parts are not a JSON object"),
        ({"parts": {"x": {**PART, "norms": None}}}, "norms of the part x"),
        ({"tasks": ["a", "c"]}, "is of the tasks a, c, those before are of a, b"),
        ({"parts": {"x": PART}}, r"is of the parts x, those before are of \(none\)"),
    ],
)
def test_a_bad_record_is_told_with_its_line(changed, sentence, tmp_path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in (GOOD, GOOD, GOOD | changed)))
    with pytest.raises(ValueError, match=f"r.jsonl, line 3 .*{sentence}") as told:
        records.read(path)
    assert "\n" not in str(told.value)
    path.write_text(json.dumps(GOOD))
    assert records.read(path) == [GOOD]


@pytest.mark.parametrize("missing", ["norms", "conflicts", "direction_norm", "status", "step"])
def test_what_lacks_a_number_is_no_record(missing, tmp_path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text(json.dumps({name: x for name, x in GOOD.items() if name != missing}))
    with pytest.raises(ValueError, match=f"line 1 is not a record of a Monitor: .*{missing}"):
        records.read(path)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is empty"),
        (b"\n \n", "is empty"),
        (json.dumps(GOOD).encode() + b'\n{"step": 2, "st\n', "line 2 is broken, it is not JSON"),
        (b"[1, 2]\n", "line 1 is not a record of a Monitor: it is not a JSON object"),
        (b"\x89PNG\r\n\x1a\n\xff", "is not text"),
    ],
)
def test_a_bad_file_is_told(content, sentence, tmp_path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=sentence) as told:
        records.read(path)
    assert "\n" not in str(told.value)


def test_no_file_is_told(tmp_path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        records.read(tmp_path / "none.jsonl")
    with pytest.raises(ValueError, match="cannot be read"):
        records.read(tmp_path)
