"""Configurations of the imbalance study: those that come along, and wrong ones."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import pytest
import study_toy

from studies.imbalance.__main__ import main
from studies.imbalance.config import Config, ConfigError, parse_config, read_config
from studies.imbalance.recipes import PLAIN

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module", autouse=True)
def toy():
    with study_toy.registered():
        yield


@pytest.mark.parametrize(("name", "package"), [("study.json", "river"), ("smoke.json", "skimage")])
def test_the_configurations_that_come_along_are_studies(name, package):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed, with the data whose tasks are counted")
    config = read_config(ROOT / "studies" / "imbalance" / name)
    assert len(config.seeds) >= (3 if name == "study.json" else 2)
    assert all("avgnorm-sum-last" in part.methods for part in config.parts)


def changed(**values: object) -> dict:
    """A configuration as JSON, its only part with some values changed."""
    part = {
        "data": "toy", "encoder": "mlp", "steps": 3, "batch": 2, "rate": 0.1, "methods": ["equal"],
    }  # fmt: skip
    return {"seeds": [0], "parts": [part | values]}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ([], "the study must be an object"),
        ({"seeds": [0]}, "the study lacks the key 'parts'"),
        ({"seeds": [0], "parts": {}}, "parts must be a list"),
        (changed(step=3), "a part has no key 'step'"),
        (changed(encoder="resnet"), "toy-resnet: there is stereo with dense"),
        (changed(steps=0), "steps must be positive"),
        (changed(methods=["equal", "pcgard"]), "'pcgard' is none of equal, grid, avgnorm-sum-last"),
        (changed(methods=["pcgrad"]), "methods must have 'equal'"),
        (changed(methods=["equal", "grid"]), "'grid' in methods and levels go together"),
        (changed(levels=[0, 1], methods=["equal", "grid"]), "levels are positive"),
        (changed(settings=["quarter"]), "'quarter' is none of full, half, pretrained"),
        (changed(settings=["half"]), "setting_methods must have 'equal' too"),
        (changed(setting_methods=["uw"]), "'uw' of setting_methods is not in methods"),
        (changed() | {"seeds": [1, 1]}, "seeds: give different whole numbers"),
        (changed() | {"watch_every": 0}, "watch_every and checkpoint_every"),
        (changed(data=["toy"]), r"data must be a text, not \['toy'\]"),
        (changed(steps="400"), "toy-mlp: steps must be a whole number, not '400'"),
        (changed(steps=2.5), "steps must be a whole number, not 2.5"),
        (changed(steps=True), "steps must be a whole number, not True"),
        (changed(batch=0.5), "batch must be a whole number, not 0.5"),
        (changed(rate=math.inf), "rate must be a finite number, not inf"),
        (changed(draws=2.5), "draws must be a whole number, not 2.5"),
        (changed(methods="equal"), "methods must be a list of texts, not 'equal'"),
        (
            changed(levels=["1"], methods=["equal", "grid"]),
            r"levels must be a list of finite numbers, not \['1'\]",
        ),
        (changed() | {"seeds": 3}, "the study: seeds must be a list of whole numbers, not 3"),
        (changed() | {"seeds": ["a"]}, r"seeds must be a list of whole numbers, not \['a'\]"),
        (changed(methods=["equal", "uw", "uw"]), "methods must have nothing twice"),
        (changed(levels=[1, 1.0], methods=["equal", "grid"]), "levels must have nothing twice"),
    ],
)
def test_a_wrong_configuration_gets_a_sentence(content, sentence):
    with pytest.raises(ConfigError, match=sentence):
        parse_config(content).check()


def test_a_configuration_that_is_no_json_gets_a_sentence(tmp_path, capsys):
    path = tmp_path / "study.json"
    path.write_text("{")
    assert main(["run", str(path), "--out", str(tmp_path)]) == 1
    assert "cannot be read" in capsys.readouterr().err


def test_every_method_of_the_study_is_one_that_it_can_run():
    assert set(PLAIN) < set(study_toy.EVERYTHING.methods)
    Config(seeds=(0,), parts=(study_toy.EVERYTHING,)).check()
