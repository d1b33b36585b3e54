"""Figures draw the records' own numbers, on the Axes that they are given."""

from __future__ import annotations

import math
import sys
from typing import Any

import pytest
import torch

from mtlkernels import Monitor, Report
from mtlkernels.monitoring import figures, records

pytest.importorskip("matplotlib")
from matplotlib.figure import Figure

LINES = {"losses": figures.losses, "norms": figures.norms, "weights": figures.weights}
LINES["shares"] = figures.shares


def made(tasks: tuple[str, ...], parts: tuple[str, ...] = (), steps: int = 8) -> list[Any]:
    generator = torch.Generator().manual_seed(0)
    monitor, found = Monitor(parts=parts), []
    shape = (len(parts),) if parts else ()
    for _ in range(steps):
        G = torch.randn(*shape, len(tasks), 6, generator=generator, dtype=torch.float64)
        weights = torch.rand(len(tasks), generator=generator).double().expand(*shape, -1)
        losses = torch.rand(len(tasks), generator=generator)
        status = torch.zeros(len(tasks), dtype=torch.int64)
        monitor(Report(tasks, G @ G.mT, weights, losses, status))
        found.append(monitor.flush())
    return found


@pytest.mark.parametrize("name", LINES)
def test_lines_are_the_numbers_over_the_steps(name) -> None:
    found = made(("a", "b", "c"))
    axes = Figure().subplots()
    assert LINES[name](found, axes) is axes
    legend = axes.get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["a", "b", "c"]
    for t, (line, named) in enumerate(zip(axes.get_lines()[:3], legend.get_lines(), strict=True)):
        assert list(line.get_xdata()) == list(range(1, 9))
        assert list(line.get_ydata()) == [record[name][t] for record in found]
        assert named.get_color() == line.get_color()


def test_of_many_tasks_the_largest_are_named() -> None:
    legend = figures.norms(made(tuple(f"_{t}" for t in range(40)), steps=2)).get_legend()
    found = records.mean(made(tuple(f"_{t}" for t in range(40)), steps=2), "norms")
    largest = sorted(found.argsort(descending=True)[:16].tolist())
    assert [text.get_text() for text in legend.get_texts()] == [f"_{t}" for t in largest]
    assert legend.get_title().get_text() == "the largest of 40"


def test_norms_have_a_logarithmic_scale() -> None:
    assert figures.norms(made(("a", "b"))).get_yscale() == "log"
    assert figures.weights(made(("a", "b"))).get_yscale() == "linear"


def test_the_heat_map_is_the_mean_cosine() -> None:
    found = made(("a", "b", "c"))
    axes = figures.cosines(found)
    (image,) = axes.get_images()
    shown = torch.tensor(image.get_array().tolist(), dtype=torch.float64)
    torch.testing.assert_close(shown, records.mean(found, "cosines"))
    assert image.get_clim() == (-1, 1)
    assert f"{shown[0, 1]:.2f}" in {text.get_text() for text in axes.texts}


def test_bars_are_the_parts_conflict_rates() -> None:
    found = made(("a", "b", "c"), ("first", "second"))
    axes = figures.conflict_rate_by_part(found)
    widths = [bar.get_width() for bar in axes.patches]
    for part, width in zip(("first", "second"), widths, strict=True):
        assert width == pytest.approx(
            sum(record["parts"][part]["conflict_rate"] for record in found) / len(found)
        )
    assert [text.get_text() for text in axes.get_yticklabels()] == ["first", "second"]


def test_conflict_rate_over_the_steps() -> None:
    found = made(("a", "b", "c"))
    (line,) = figures.conflict_rate(found).get_lines()
    assert list(line.get_ydata()) == [record["conflict_rate"] for record in found]


CASES = {
    "one record": made(("a", "b"), steps=1),
    "one task": made(("a",)),
    "forty tasks": made(tuple(f"_task with a long name, {t}" for t in range(40)), steps=2),
    "many parts": made(("a", "b"), tuple(f"layer.{p}" for p in range(90)), steps=2),
    "odd names": made(("$a$ $\\oops{$", "b%", "<c>"), ("$\\oops{$", "y")),
    "no gradients": [
        {
            **record,
            **{name: [None, None] for name in ("norms", "weights", "shares")},
            "cosines": [[None, None]] * 2,
            "conflict_rate": math.nan,
        }
        for record in made(("a", "b"))
    ],
}


@pytest.mark.parametrize("case", CASES)
def test_a_page_can_be_made_of_it(case, tmp_path) -> None:
    page = figures.summary(CASES[case], "$\\oops{$.jsonl")
    page.savefig(tmp_path / "page.png", dpi=40)
    assert (tmp_path / "page.png").read_bytes().startswith(b"\x89PNG")
    titles = [axes.get_title() for axes in page.axes if axes.get_title()]
    assert len(titles) == 6
    told = [text.get_text() for axes in page.axes for text in axes.texts]
    assert told.count("not in these records") == (5 if case == "no gradients" else 0)


def test_matplotlib_s_global_state_is_not_used(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # importing it raises
    figures.summary(made(("a", "b")))
    figures.norms(made(("a", "b")))


def test_a_missing_matplotlib_is_one_sentence(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    for draw in (figures.norms, figures.summary):
        with pytest.raises(ModuleNotFoundError, match=r"pip install 'mtlkernels\[plot\]'"):
            draw(made(("a", "b")))
