"""What every registered method says of itself, and the table that prints it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import mtlkernels
from mtlkernels import GramMethod, LossMethod, RowMethod
from mtlkernels.__main__ import main
from mtlkernels.methods import METHODS, find_method

# What those are set up with that have no defaults.
ARGUMENTS = {
    "UW": (2,),
    "IMTLL": (2,),
    "ResNorm": (2,),
    "Gated": (1,),
    "FixedWeights": ([1.0, 2.0],),
    "CRMOGM": (mtlkernels.Mean(),),
    "Normalized": (mtlkernels.Mean(), "l2"),
    "Preferred": (mtlkernels.Mean(), [1.0, 2.0]),
    "ClippedTasks": (mtlkernels.Mean(), 1.0),
    "LogLosses": (mtlkernels.Mean(),),
    "PerPart": (mtlkernels.PCGrad(),),
    "Reused": (mtlkernels.Mean(), 2),
    "Tracked": (mtlkernels.Mean(),),
}
every_class = pytest.mark.parametrize("cls", METHODS.values(), ids=METHODS.keys())


@every_class
def test_facts(cls) -> None:
    families = {"Gram": GramMethod, "loss": LossMethod, "row": RowMethod}
    assert issubclass(cls, families.pop(cls.family))
    assert not issubclass(cls, tuple(families.values()))
    assert cls.paper == "baseline" or re.fullmatch(
        r"(arXiv|openreview|NeurIPS|CVPR|IEEE) \S+", cls.paper
    )
    assert cls.cost.startswith("1 backward" if cls.family == "loss" else "T backward passes")
    assert cls.keeps


@every_class
def test_docstring_names_the_paper(cls) -> None:
    assert cls.__dict__["__doc__"]
    assert cls.paper.split()[-1] in cls.__doc__


@every_class
def test_public_under_its_own_name(cls) -> None:
    assert getattr(mtlkernels, cls.__name__) is cls
    assert cls.__name__ in mtlkernels.__all__
    assert cls.__name__ in mtlkernels.methods.__all__
    assert find_method(cls.__name__) is cls


@every_class
def test_what_keeps_nothing_has_no_state(cls) -> None:
    method = cls(*ARGUMENTS.get(cls.__name__, ()))
    assert (cls.keeps == "nothing") == (len(method.state_dict()) == 0)


def test_table(capsys) -> None:
    assert main(["methods"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(METHODS) + 1
    for line, cls in zip(lines[1:], METHODS.values(), strict=True):
        name, *facts = re.split(r"\s{2,}", line)
        assert name == cls.__name__
        assert facts == [cls.family, cls.cost, cls.keeps, cls.paper]
    assert max(map(len, lines)) <= 125


def documented() -> dict[str, list[str]]:
    """Rows of the table of docs/methods.md, by method."""
    page = Path(__file__).parents[2] / "docs" / "methods.md"
    rows = [line for line in page.read_text().splitlines() if line.startswith("| `")]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert len({row[0] for row in cells}) == len(cells), "a method has two rows"
    return {name.strip("`"): facts for name, *facts in cells}


@every_class
def test_documented(cls) -> None:
    family, cost, keeps, *published, source = documented()[cls.__name__]
    assert (family, cost, keeps) == (cls.family, cls.cost, cls.keeps)
    assert all(re.fullmatch(r"-|-?\d+\.\d+", number) for number in published)
    assert len(published) == 4
    assert (source == "-") == (set(published) == {"-"}), "a number needs a source"


@every_class
def test_docstring_has_what_a_page_of_the_docs_shows(cls) -> None:
    assert ".. math::" in cls.__doc__
    for heading in ("Use when:", "Avoid when:"):
        assert re.search(rf"^    {heading}\n        \S", cls.__doc__, re.M), f"no {heading!r}"


def test_no_row_is_of_a_method_that_is_gone() -> None:
    assert documented().keys() == {cls.__name__ for cls in METHODS.values()}
