"""The README and the pages of docs/: their code runs as it is written, and their links lead on."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
import torch
from pages import ON_SEVERAL_RANKS, ROOT, code_of, marks, pages, prelude

import mtlkernels
from mtlkernels.methods import METHODS

CODE = {
    f"{page}#{heading}" if heading else page: code
    for page in pages()
    if page not in ON_SEVERAL_RANKS
    for heading, code in code_of(page).items()
}


def test_the_pages_have_code() -> None:
    guides = {page for page in pages() if page.startswith("docs/guides/")}
    silent = {"docs/guides/index.md"}
    assert all(code_of(page) for page in guides - silent)
    assert all(code_of(page) for page in ("README.md", "docs/start.md", *ON_SEVERAL_RANKS))


# torch's own: inductor's modules are decorated with it when they are first imported.
@pytest.mark.filterwarnings("ignore:.torch.:DeprecationWarning", "ignore:.torch.:FutureWarning")
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    "place", [pytest.param(place, marks=marks(code)) for place, code in CODE.items()]
)
def test_code_runs_and_trains(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = prelude(CODE[place])
    model = names["model"]
    before = copy.deepcopy(model.state_dict())
    exec(compile(CODE[place], place, "exec"), names)
    theirs = re.search(r"\bmodel\.parameters", CODE[place]) and "TwoHeads" not in CODE[place]
    for name, value in model.state_dict().items():
        assert value.isfinite().all()
        if theirs:
            assert not torch.equal(value.cpu(), before[name]), f"{name} was not trained"


def anchors(text: str) -> set[str]:
    """The headings of a page as GitHub and MyST make addresses of them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.M)
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings
    }


@pytest.mark.parametrize("page", [*pages(), "CHANGELOG.md"])
def test_links_lead_to_files_and_headings(page: str) -> None:
    path = ROOT / page
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://")):
            continue
        file, _, anchor = target.partition("#")
        there = (path.parent / file).resolve() if file else path
        assert there.exists(), f"{page} links to {target}"
        if anchor:
            assert anchor in anchors(there.read_text()), f"{page} links to {target}"


def test_every_public_name_has_a_place_in_the_reference() -> None:
    reference = (ROOT / "docs" / "api.md").read_text()
    named = set(re.findall(r"^\.\. auto\w+:: mtlkernels\.(\w+)", reference, re.M))
    methods = {cls.__name__ for cls in METHODS.values()}
    assert set(mtlkernels.__all__) <= named | methods
