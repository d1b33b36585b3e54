"""One page for each registered method, made from its class when the site is built."""

from __future__ import annotations

from pathlib import Path

import docstrings

from mtlkernels.methods import METHODS, GramMethod, LossMethod, RowMethod

LINKS = {
    "arXiv": "https://arxiv.org/abs/{}",
    "IEEE": "https://ieeexplore.ieee.org/document/{}",
    "openreview": "https://openreview.net/forum?id={}",
}
MEMBERS = ("forward", "update", "reset")
DATA = ("NYUv2", "Cityscapes", "CelebA", "QM9")


def write(folder: Path, overview: Path) -> None:
    """Writes the pages; published results are taken from the table of the overview.

    Files whose text is the same are left alone, so that Sphinx reads only what has changed.
    """
    folder.mkdir(exist_ok=True)
    published = results(overview)
    pages = {f"{cls.__name__}.md": page(cls, published[cls.__name__]) for cls in METHODS.values()}
    for old in {path.name for path in folder.glob("*.md")} - pages.keys():
        (folder / old).unlink()
    for name, text in pages.items():
        path = folder / name
        if not path.exists() or path.read_text() != text:
            path.write_text(text)


def results(overview: Path) -> dict[str, list[str]]:
    """Method -> its cells in the overview's table."""
    rows = [line for line in overview.read_text().splitlines() if line.startswith("| `")]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    return {name.strip("`"): facts for name, *facts in cells}


def page(cls: type[GramMethod | LossMethod | RowMethod], facts: list[str]) -> str:
    """The page of one method: its facts, published results and docstring."""
    *_, nyu, cityscapes, celeba, qm9, source = facts
    lines = [
        f"# {cls.__name__}",
        "",
        "| | |",
        "|---|---|",
        f"| family | {cls.family} |",
        f"| paper | {link(cls.paper)} |",
        f"| cost of a step | {cls.cost} |",
        f"| state | {cls.keeps} |",
    ]
    for heading in docstrings.ADVICE:
        lines.append(f"| {heading.lower()} | {docstrings.section(cls.__doc__ or '', heading)} |")
    numbers = dict(zip(DATA, (nyu, cityscapes, celeba, qm9), strict=True))
    known = ", ".join(f"{data} {number}" for data, number in numbers.items() if number != "-")
    if known:
        note = "[lower is better](../methods.md#published-results)"
        lines.append(f"| published delta_m, % | {known} (from: {source}; {note}) |")
    shown = [name for name in MEMBERS if name in vars(cls)]
    lines += ["", "```{eval-rst}", f".. autoclass:: mtlkernels.{cls.__name__}"]
    if shown:
        lines.append(f"   :members: {', '.join(shown)}")
    return "\n".join([*lines, "```", ""])


def link(paper: str) -> str:
    """The paper, as a link where its name is an address."""
    kind, _, name = paper.partition(" ")
    return f"[{paper}]({LINKS[kind].format(name)})" if kind in LINKS else paper
