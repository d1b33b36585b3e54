"""The results for people: how each stage ended, what failed, and the tables of times."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Line = dict[str, Any]


def summary(lines: list[Line]) -> str:
    """Markdown of what read() gives."""
    return "\n".join([*_facts(lines), *_stages(lines), *_failures(lines), *_times(lines)]) + "\n"


def _facts(lines: list[Line]) -> Iterator[str]:
    yield "# GPU check\n"
    for line in lines:
        if line["kind"] in ("machine", "device", "build"):
            told = ", ".join(f"{k} {v}" for k, v in line.items() if k not in ("stage", "kind"))
            yield f"* {line['kind']}: {told}"
    yield ""


def _stages(lines: list[Line]) -> Iterator[str]:
    yield "| stage | ended | seconds | tests passed | failed | skipped | rows | left out |"
    yield "|" + "---|" * 8
    for end in (line for line in lines if line["kind"] == "end"):
        own = [line for line in lines if line["stage"] == end["stage"]]
        outcomes = [line["outcome"] for line in own if line["kind"] == "test"]
        counts = [outcomes.count(name) for name in ("passed", "failed", "skipped")]
        rows = sum(line["kind"] in ("row", "step") and "failed" not in line for line in own)
        left = sum(line["kind"] == "left out" for line in own)
        cells = [end["stage"], end["how"], f"{end['seconds']:.0f}", *counts, rows, left]
        yield "| " + " | ".join(map(str, cells)) + " |"
    yield ""


def _failures(lines: list[Line]) -> Iterator[str]:
    failed = [line for line in lines if line.get("outcome") == "failed" or "failed" in line]
    if failed:
        yield "## What failed\n"
    for line in failed:
        what = line.get("test") or " ".join(_setting(line))
        told = line.get("traceback") or str(line["failed"])
        yield f"* {line['stage']}: {what}: `{(told.strip().splitlines() or ['?'])[-1][:200]}`"
    if failed:
        yield ""


def _setting(line: Line) -> list[str]:
    names = ("case", "model", "run", "dtype")
    return [str(line[name]) for name in names if name in line] + [f"T={line.get('T')}"]


def _times(lines: list[Line]) -> Iterator[str]:
    shares = {
        (line["stage"], *_setting(line)): line["of_copy"]
        for line in lines
        if line["kind"] == "share"
    }
    timed = [line for line in lines if "seconds" in line and line["kind"] in ("row", "step")]
    if timed:
        yield "| stage | what | us | GB/s | of the copy | host us | launches |"
        yield "|" + "---|" * 7
    for line in timed:
        rate = f"{line['bytes'] / line['seconds'] / 1e9:.0f}" if "bytes" in line else ""
        share = shares.get((line["stage"], *_setting(line)))
        host = f"{line['host_seconds'] * 1e6:.0f}" if "host_seconds" in line else ""
        cells = [line["stage"], " ".join(_setting(line)), f"{line['seconds'] * 1e6:.1f}", rate]
        cells += [f"{share:.2f}" if share else "", host, str(line.get("launches") or "")]
        yield "| " + " | ".join(cells) + " |"
