"""The folder of results, which stays readable whenever the program is killed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from studies.imbalance.specs import Spec

Results = dict[str, dict[str, Any]]


class Folder:
    """Results as JSON lines, one file a problem and one line a run; checkpoints are in `work`.

    A line is appended when its run ends, by whichever process ran it. Of several lines of one run
    the last one counts; a line that was cut off counts as missing, and so does one that answers
    another question, of an earlier configuration for example.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.work = root / "work"
        self._read: dict[Path, tuple[tuple[int, int], Results]] = {}

    def __reduce__(self) -> tuple[type[Folder], tuple[Path]]:
        return Folder, (self.root,)  # a worker reads what it needs itself

    def result(self, spec: Spec) -> dict[str, Any] | None:
        """The result of a finished run; None where it has not finished."""
        found = self._results(self._file(spec)).get(spec.run)
        return found if found is not None and found.get("asked") == spec.asked() else None

    def finish(self, spec: Spec, result: dict[str, Any]) -> None:
        """Appends the result, waits for the disk and drops the checkpoint."""
        line = json.dumps({"run": spec.run, "asked": spec.asked(), **result})
        self.root.mkdir(parents=True, exist_ok=True)
        with self._file(spec).open("ab", buffering=0) as file:
            # One write, which other processes cannot split; the newline before it ends a line that
            # was cut off.
            file.write(f"\n{line}\n".encode())
            os.fsync(file.fileno())
        self._state_path(spec, "checkpoint").unlink(missing_ok=True)

    def save(self, spec: Spec, what: str, state: dict[str, Any]) -> None:
        """Keeps tensors and numbers of a run: its "checkpoint" or its "encoder"."""
        content = {"asked": spec.asked(), "state": state}
        self._replace(self._state_path(spec, what), lambda path: torch.save(content, path))

    def load(self, spec: Spec, what: str) -> dict[str, Any] | None:
        """What `save` kept; None where it kept nothing."""
        path = self._state_path(spec, what)
        if not path.is_file():
            return None
        content = torch.load(path, weights_only=True)
        return content["state"] if content["asked"] == spec.asked() else None

    def clean(self) -> None:
        """Sorts the files by run, one line each, and drops what only unfinished runs need."""
        for path in sorted(self.root.glob("*.jsonl")):
            results = sorted(self._results(path).items())
            text = "".join(json.dumps(result) + "\n" for _, result in results)
            self._replace(path, partial(_write, text))
        shutil.rmtree(self.work, ignore_errors=True)

    def _file(self, spec: Spec) -> Path:
        return self.root / f"{spec.part.name}.jsonl"

    def _results(self, path: Path) -> Results:
        """The whole lines of a file, by run; read again only when the file has changed."""
        try:
            stat = path.stat()
        except FileNotFoundError:
            return {}
        state = (stat.st_size, stat.st_mtime_ns)
        if path not in self._read or self._read[path][0] != state:
            self._read[path] = (state, _parsed(path.read_bytes()))
        return self._read[path][1]

    def _state_path(self, spec: Spec, what: str) -> Path:
        return self.work / what / spec.part.name / f"{spec.run}.pt"

    def _replace(self, path: Path, write: Callable[[Path], Any]) -> None:
        """Writes under another name, waits for the disk, then renames."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.work.mkdir(parents=True, exist_ok=True)
        temporary = self.work / f"{path.name}.{os.getpid()}"
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)


def _write(text: str, path: Path) -> None:
    path.write_text(text, encoding="utf-8")


def _parsed(content: bytes) -> Results:
    found: Results = {}
    for line in content.splitlines():
        try:
            result = json.loads(line)
        except ValueError:  # no JSON, or no text at all
            continue
        if isinstance(result, dict) and isinstance(result.get("run"), str):
            found[result["run"]] = result
    return found
