"""Command line of the study: run what is missing, then make tables, figures and the page."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mtlkernels.extras import MissingPackageError
from studies.imbalance.config import ConfigError, read_config
from studies.imbalance.data.common import DataFolderError
from studies.imbalance.page import write_page
from studies.imbalance.results import MissingRunError
from studies.imbalance.runner import run_study
from studies.imbalance.sheet import draw_sheet
from studies.imbalance.storage import Folder


def main(argv: Sequence[str] | None = None) -> int:
    """0 when done, 1 when something is missing; wrong arguments exit with 2."""
    arguments = _parser().parse_args(argv)
    try:
        if arguments.command == "sheet":
            print(draw_sheet(arguments.out))
            return 0
        folder = Folder(arguments.out)
        config = read_config(arguments.config)
        if arguments.command == "run":
            run_study(config, folder, arguments.jobs)
        else:
            for path in write_page(config, folder, arguments.page):
                print(path)
    except (ConfigError, DataFolderError, MissingPackageError, MissingRunError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m studies.imbalance",
        description="Do gradient norms tell which tasks lose, and does scaling by them suffice?",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="do the runs that are missing; may be killed and redone")
    report = commands.add_parser("report", help="write the page and its figures from the results")
    for command in (run, report):
        command.add_argument("config", type=Path, help="JSON file that describes the study")
        command.add_argument("--out", type=Path, required=True, help="folder of the results")
    sheet = commands.add_parser("sheet", help="draw twelve scenes with their labels")
    sheet.add_argument("--out", type=Path, required=True, help="PNG file to write")
    run.add_argument("--jobs", type=_jobs, default=1, help="runs at a time (default: %(default)s)")
    report.add_argument("--page", type=Path, required=True, help="Markdown file to write")
    return parser


def _jobs(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
