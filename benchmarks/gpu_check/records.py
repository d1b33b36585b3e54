"""The results: JSON lines that are in the file as soon as they are known."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

OUT = "GPU_CHECK_OUT"  # environment variables that a stage finds its folder and its name in
STAGE = "GPU_CHECK_STAGE"
DEVICE = "GPU_CHECK_DEVICE"  # cuda, or cpu as a stand-in
SHORT = "GPU_CHECK_SHORT"  # "1": the shortest form of every stage


class Records:
    """Appends to a folder's results, a line at a time: several processes may do so at once."""

    def __init__(self, folder: Path, stage: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "results.jsonl"
        self.stage = stage

    @classmethod
    def of_this_stage(cls) -> Records:
        """For a stage's own process."""
        return cls(Path(os.environ[OUT]), os.environ[STAGE])

    def add(self, kind: str, **facts: Any) -> None:
        line = json.dumps({"stage": self.stage, "kind": kind, **facts}, default=str) + "\n"
        with self.path.open("ab", buffering=0) as file:
            file.write(line.encode())


def read(folder: Path) -> list[dict[str, Any]]:
    """All complete lines: the last one of a machine that was switched off may not be."""
    path = folder / "results.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def device() -> str:
    return os.environ.get(DEVICE, "cuda")


def is_short() -> bool:
    return os.environ.get(SHORT) == "1"
