"""Command line of the report: read, print, draw."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mtlkernels.extras import MissingPackageError
from mtlkernels.monitoring.diagnosis import diagnose
from mtlkernels.monitoring.figures import summary
from mtlkernels.monitoring.records import read


def main(argv: Sequence[str] | None = None) -> int:
    """Report on a run: 0 when done, 1 without matplotlib, 2 for a file that is none of ours."""
    arguments = _parser().parse_args(argv)
    try:
        out = arguments.out or arguments.run.with_suffix(".png")
        records = read(arguments.run)
        if out.absolute() == arguments.run.absolute():
            raise ValueError(f"{out} is the log itself: give the figure another name with --out")
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    _print(f"{arguments.run}\n{diagnose(records)}")
    try:
        summary(records, str(arguments.run)).savefig(out)
    except MissingPackageError as missing:
        print(missing, file=sys.stderr)
        return 1
    except (OSError, ValueError) as error:  # no such folder, no such format
        print(f"the figure cannot be saved as {out}: {error}", file=sys.stderr)
        return 2
    _print(f"\nfigure: {out}")
    return 0


def _print(text: str) -> None:
    """Letters that the terminal has not are escaped; stderr does so by itself."""
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m mtlkernels report",
        description="Say what a run's records show: which task dominates, which conflict, where.",
    )
    parser.add_argument("run", type=Path, help="the file that Monitor(JSONL(path)) wrote")
    parser.add_argument(
        "--out", type=Path, help="the one-page figure (default: beside the log, as .png)"
    )
    return parser
