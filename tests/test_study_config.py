"""Configurations of the imbalance study: those that come along, and wrong ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import study_toy

from examples.imbalance.__main__ import main
from examples.imbalance.config import Config, ConfigError, parse_config, read_config
from examples.imbalance.recipes import PLAIN

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module", autouse=True)
def toy():
    with study_toy.registered():
        yield


@pytest.mark.parametrize("name", ["study.json", "smoke.json"])
def test_the_configurations_that_come_along_are_studies(name):
    config = read_config(ROOT / "examples" / "imbalance" / name)
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
