"""Docstrings are written to be read in a terminal; this makes reStructuredText of them."""

from __future__ import annotations

import re
from collections.abc import Iterator

SECTION = re.compile(r"[A-Z][\w ]*:$")
ADVICE = ("Use when", "Avoid when")  # sections of the methods, which their pages have in a table


def prepare(
    app: object, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Sphinx's hook: changes the lines of one docstring in place."""
    lines[:] = list(_literal_blocks(_without_advice(lines)))


def section(doc: str, heading: str) -> str:
    """The text of a section of a class's docstring, on one line."""
    found = re.search(rf"^    {heading}:\n((?:        .+\n)+)", doc, re.M)
    return " ".join(found[1].split()) if found else ""


def _without_advice(lines: list[str]) -> list[str]:
    text = "\n".join([*lines, ""])
    for heading in ADVICE:
        text = re.sub(rf"^{heading}:\n((?:    .+\n)+)", "", text, flags=re.M)
    return text.split("\n")


def _literal_blocks(lines: list[str]) -> Iterator[str]:
    """Marks indented code, and escapes what only looks like markup, such as ||g||."""
    inside = ""  # the kind of an indented block: "code", "math" or none
    for number, line in enumerate(lines):
        before = lines[number - 1] if number else ""
        if line and not line.startswith(" "):
            inside = "math" if line.startswith(".. ") else ""
        starts_block = line.startswith("    ") and not before.strip() and not inside
        if starts_block and not _in_section(lines[:number]):
            inside = "code"
            yield "::"
            yield ""
        yield line if inside else _escaped(line)


def _in_section(above: list[str]) -> bool:
    """Whether the last line without indentation is the heading of a section."""
    last = next((line for line in reversed(above) if line and not line.startswith(" ")), "")
    return bool(SECTION.match(last))


def _escaped(line: str) -> str:
    """The line without substitutions, references, emphasis and lists, as "(T)" and "T." begin."""
    line = re.sub(r"(?<=: )(?=\w\.(\s|$))", r"\\", line)
    parts = re.split(r"(`[^`]*`)", line)
    for i in range(0, len(parts), 2):
        parts[i] = re.sub(r"([|*]|(?<=\w)_(?!\w)|\((?=\w\)))", r"\\\1", parts[i])
    return "".join(parts)
