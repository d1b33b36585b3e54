"""The study's folder of results, when what lies there is no whole result."""

from __future__ import annotations

import pytest
import study_toy

from examples.imbalance import runner
from examples.imbalance.results import MissingRunError, result_of
from examples.imbalance.specs import method_spec
from examples.imbalance.storage import Folder


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
    path = tmp_path / spec.path
    assert result_of(folder, spec)["steps"] == 24
    path.write_bytes(broken(path.read_bytes()))
    with pytest.raises(MissingRunError, match=r"uw-seed0\.json is missing or stale"):
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
