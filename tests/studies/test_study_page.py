"""The page of the imbalance study, made from the results of a whole toy study."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import study_toy

from studies.imbalance import results
from studies.imbalance.__main__ import main
from studies.imbalance.config import read_config
from studies.imbalance.page import BLOCK, TEMPLATE, fill, write_page
from studies.imbalance.problems import DATA
from studies.imbalance.results import best_weights, gain
from studies.imbalance.runner import run_study
from studies.imbalance.specs import grid_specs
from studies.imbalance.storage import Folder

pytest.importorskip("tqdm")

ROOT = Path(__file__).parents[2]
PART = study_toy.STUDY.parts[0]


@pytest.fixture(scope="module", autouse=True)
def toy():
    with study_toy.registered():
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Folder:
    """The whole toy study."""
    whole = Folder(tmp_path_factory.mktemp("whole"))
    run_study(study_toy.STUDY, whole)
    return whole


def test_the_grid_chooses_by_validation_and_pays_for_all_its_points(folder):
    points = grid_specs(study_toy.STUDY, PART, 2)
    tasks = ("small", "large")
    single = results.baselines(study_toy.STUDY, folder, PART, "full", 0, tasks)
    gains = {p.weights: gain(folder.result(p), single, "validation") for p in points}
    assert best_weights(study_toy.STUDY, folder, PART) == max(gains, key=gains.__getitem__)
    found = results.score(study_toy.STUDY, folder, PART, "grid", "full")
    assert found.steps == len(points) * PART.steps
    assert len(found.gains) == 2


def test_the_page_is_made_from_the_results_alone_and_keeps_the_text_around(
    folder, tmp_path, monkeypatch
):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr("studies.imbalance.ranks.REPLICATES", 100)
    page = tmp_path / "study.md"
    written = write_page(study_toy.STUDY, folder, page)
    assert {path.name for path in written} == {
        "study.md", "norms.png", "methods.png", "costs.png", "settings.png",
    }  # fmt: skip
    assert all(path.stat().st_size > 0 for path in written)
    text = page.read_text()
    for method in PART.methods:
        assert f"| `{method}` |" in text
    found = results.score(study_toy.STUDY, folder, PART, "pcgrad", "full")
    assert f"{found.mean:+.2f} ± {found.deviation:.2f}" in text
    assert "](study/norms.png)" in text
    page.write_text(text.replace("# The imbalance study", "# Ours").replace("| `pcgrad`", "| ?"))
    monkeypatch.setattr("studies.imbalance.page.draw_figures", lambda *_: written[1:])
    write_page(study_toy.STUDY, folder, page)
    assert page.read_text() == text.replace("# The imbalance study", "# Ours")


def test_the_committed_page_is_that_of_the_committed_results(tmp_path, monkeypatch):
    def figures(config: object, folder: object, target: Path) -> list[Path]:
        return sorted(target.glob("*.png"))

    study, docs = ROOT / "studies" / "imbalance", ROOT / "docs"
    shutil.copytree(docs / "study", tmp_path / "study")
    page = tmp_path / "study.md"
    monkeypatch.setattr("studies.imbalance.page.draw_figures", figures)
    write_page(read_config(study / "study.json"), Folder(study / "results"), page)
    assert page.read_text() == (docs / "study.md").read_text()


def test_the_page_names_the_precision_of_chance():
    edges = DATA["stereo"]().test.targets["edges"]
    assert f"chance, {edges.nanmean():.3f} on the test columns" in TEMPLATE.read_text()


def test_without_results_there_is_no_page(tmp_path, capsys):
    page = tmp_path / "study.md"
    config = str(ROOT / "studies" / "imbalance" / "smoke.json")
    assert main(["report", config, "--out", str(tmp_path / "none"), "--page", str(page)]) == 1
    assert "run the study first" in capsys.readouterr().err
    assert not page.exists()


def test_a_page_with_other_blocks_is_refused():
    template = TEMPLATE.read_text()
    names = [found[2] for found in BLOCK.finditer(template)]
    blocks = {name: f"{name}\n" for name in names}
    assert fill(template, blocks).count("<!-- study: end -->") == len(names)
    with pytest.raises(ValueError, match="blocks data: the page and the study differ"):
        fill(template, {name: text for name, text in blocks.items() if name != "data"})
