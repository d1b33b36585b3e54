"""The study's folder of results, when what lies there is no whole result."""

from __future__ import annotations

import json
import pickle

import pytest
import study_toy

from studies.imbalance import runner
from studies.imbalance.results import MissingRunError, result_of
from studies.imbalance.specs import method_spec
from studies.imbalance.storage import Folder


@pytest.fixture(autouse=True)
def toy():
    with study_toy.registered():
        yield


@pytest.mark.parametrize(
    "broken",
    [lambda whole: whole[: len(whole) // 2], lambda whole: b"", lambda whole: b"\xff\xfe"]
    + [lambda whole, text=text: text for text in (b"{}", b"[]", b"3")],
    ids=["half", "empty", "no text", "no keys", "a list", "a number"],
)
def test_a_result_that_is_cut_off_is_missing(broken, tmp_path, monkeypatch):
    folder = Folder(tmp_path)
    part = study_toy.STUDY.parts[0]
    spec = method_spec(study_toy.STUDY, part, "uw", "full", 0)
    folder.finish(spec, {"steps": 24})
    (path,) = tmp_path.glob("*.jsonl")
    assert result_of(folder, spec)["steps"] == 24
    path.write_bytes(broken(path.read_bytes()))
    with pytest.raises(MissingRunError, match="no result of toy-mlp/full/uw-seed0"):
        result_of(folder, spec)
    monkeypatch.setattr(
        runner,
        "execute",
        lambda spec, folder, every, told: folder.finish(spec, {"steps": spec.part.steps}),
    )
    monkeypatch.setattr(runner, "best_weights", lambda *_: (1.0, 1.0))
    monkeypatch.setattr(runner, "_lost_encoders", lambda *_: [])
    runner.run_study(study_toy.STUDY, folder)
    assert result_of(folder, spec)["steps"] == 24


def test_of_two_results_of_a_run_the_last_counts_and_cleaning_keeps_it_alone(tmp_path):
    folder, part = Folder(tmp_path), study_toy.STUDY.parts[0]
    first, second = (method_spec(study_toy.STUDY, part, "uw", "full", seed) for seed in (1, 0))
    for spec, steps in ((first, 1), (second, 2), (first, 3)):
        folder.finish(spec, {"steps": steps})
        assert folder.result(spec)["steps"] == steps
    folder.clean()
    (path,) = tmp_path.iterdir()
    runs = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(run["run"], run["steps"]) for run in runs] == [
        ("full/uw-seed0", 2),
        ("full/uw-seed1", 3),
    ]


def test_a_worker_gets_the_folder_and_not_what_was_read(tmp_path):
    folder = Folder(tmp_path)
    spec = method_spec(study_toy.STUDY, study_toy.STUDY.parts[0], "uw", "full", 0)
    folder.finish(spec, {"steps": 24})
    assert folder.result(spec) == pickle.loads(pickle.dumps(folder)).result(spec)
    assert len(pickle.dumps(folder)) < 500
