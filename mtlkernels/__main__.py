"""python -m mtlkernels info | methods | report"""

from __future__ import annotations

import argparse
import sys

import mtlkernels
from mtlkernels.methods import METHODS


def info() -> None:
    """Prints the build's facts, and who serves each op on each device and why not the others."""
    for key, value in mtlkernels.build_info().items():
        print(f"{key:24} {value}")
    for device, ops in mtlkernels.backends().items():
        groups: dict[str, list[str]] = {}
        for op, entry in ops.items():
            absent = f" ({entry['unavailable']})" if "unavailable" in entry else ""
            reasons = "".join(f"\n  not {name}: {why}" for name, why in entry["others"].items())
            groups.setdefault(f"{entry['serves']}{absent}{reasons}", []).append(op)
        for told, served in groups.items():
            print(f"\n{device}: {', '.join(served)}\n  served by {told}")


def methods() -> None:
    """Prints the registered methods: family, cost of a step, state and paper."""
    rows = [("name", "family", "cost of a step", "keeps", "paper")]
    rows += [(m.__name__, m.family, m.cost, m.keeps, m.paper) for m in METHODS.values()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(map(str.ljust, row, widths)).rstrip())


def main(argv: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(prog="python -m mtlkernels", description=mtlkernels.__doc__)
    commands = ["info", "methods", "report"]
    parser.add_argument("command", choices=commands, help="what to do")
    command = parser.parse_args(arguments[:1]).command
    if command == "report":
        from mtlkernels.monitoring.command import main as report

        return report(arguments[1:])
    {"info": info, "methods": methods}[command]()
    return 0


if __name__ == "__main__":
    sys.exit(main())
