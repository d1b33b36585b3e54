"""The folder of results: files that are whole or not there, whenever the program is killed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from examples.imbalance.specs import Spec


class Folder:
    """Results as JSON files; beside them, in `work`, checkpoints and pre-trained encoders.

    What belongs to a run that asks for anything else, of an earlier configuration for example,
    counts as not there; so does a result that a copy cut off.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.work = root / "work"

    def result(self, spec: Spec) -> dict[str, Any] | None:
        """What the finished run left; None where it has not finished."""
        path = self.root / spec.path
        if not path.is_file():
            return None
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:  # no JSON, or no text at all
            return None
        whole = isinstance(found, dict) and found.get("asked") == spec.asked()
        return found if whole else None

    def finish(self, spec: Spec, result: dict[str, Any]) -> None:
        """Writes the result and drops the checkpoint."""
        text = json.dumps({"asked": spec.asked(), **result}) + "\n"
        self._write(self.root / spec.path, lambda path: path.write_text(text, encoding="utf-8"))
        self._state_path(spec, "checkpoint").unlink(missing_ok=True)

    def save(self, spec: Spec, what: str, state: dict[str, Any]) -> None:
        """Keeps tensors and numbers of a run: its "checkpoint" or its "encoder"."""
        content = {"asked": spec.asked(), "state": state}
        self._write(self._state_path(spec, what), lambda path: torch.save(content, path))

    def load(self, spec: Spec, what: str) -> dict[str, Any] | None:
        """What `save` kept; None where it kept nothing."""
        path = self._state_path(spec, what)
        if not path.is_file():
            return None
        content = torch.load(path, weights_only=True)
        return content["state"] if content["asked"] == spec.asked() else None

    def clean(self) -> None:
        """Drops all that only unfinished runs need."""
        shutil.rmtree(self.work, ignore_errors=True)

    def _state_path(self, spec: Spec, what: str) -> Path:
        return self.work / what / spec.path.with_suffix(".pt")

    def _write(self, path: Path, write: Callable[[Path], Any]) -> None:
        """Writes under another name, waits for the disk, then renames."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.work.mkdir(parents=True, exist_ok=True)
        temporary = self.work / f"{path.name}.{os.getpid()}"
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
