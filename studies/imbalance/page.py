"""The page of results: text around blocks that are written anew from the JSONs.

A block stands between `<!-- study: NAME -->` and `<!-- study: end -->`.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from studies.imbalance.config import Config
from studies.imbalance.figures import NAMES, draw_figures
from studies.imbalance.storage import Folder
from studies.imbalance.summary import summary_block
from studies.imbalance.tables import data_block, methods_block, norms_block, settings_block

TEMPLATE = Path(__file__).with_name("page.md")
BLOCK = re.compile(r"(<!-- study: (?!end)([\w-]+) -->\n).*?(<!-- study: end -->)", re.DOTALL)
BLOCKS = {
    "summary": summary_block,
    "data": data_block,
    "norms": norms_block,
    "methods": methods_block,
    "settings": settings_block,
}


def fill(document: str, blocks: dict[str, str]) -> str:
    """The document with every block written anew.

    Raises:
        ValueError: a block has a name that is not known, or one that is known is not there.
    """
    there = {found[2] for found in BLOCK.finditer(document)}
    if wrong := there ^ set(blocks):
        raise ValueError(f"blocks {', '.join(sorted(wrong))}: the page and the study differ")
    return BLOCK.sub(lambda found: f"{found[1]}{blocks[found[2]]}{found[3]}", document)


def write_page(config: Config, folder: Folder, page: Path) -> list[Path]:
    """Writes the page, from the template where there is none yet, and its figures beside it.

    The figures go into a folder that is called as the page is. Returns all that was written.
    """
    figures = draw_figures(config, folder, page.with_suffix(""))
    blocks = {name: make(config, folder) for name, make in BLOCKS.items()}
    for path in figures:
        place = Path(os.path.relpath(path, page.parent)).as_posix()
        blocks[f"figure-{path.stem}"] = f"![{path.stem}]({place})\n"
    for name in NAMES:
        blocks.setdefault(f"figure-{name}", "")
    old = page if page.exists() else TEMPLATE
    text = fill(old.read_text(encoding="utf-8"), blocks)
    page.write_text(text, encoding="utf-8")
    return [page, *figures]
