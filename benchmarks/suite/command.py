"""Command line of the benchmarks: measure, print, save, draw, and write tables into documents."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import torch

from benchmarks.choices import CHOICES
from benchmarks.models import MODELS
from benchmarks.suite import plans
from benchmarks.suite.cases import CASES
from benchmarks.suite.direction import Setting, compare
from benchmarks.suite.figures import save_figures
from benchmarks.suite.growth import points, scale
from benchmarks.suite.pages import fill
from benchmarks.suite.providers import PROVIDERS
from benchmarks.suite.results import Results, Row, environment, load, load_average
from benchmarks.suite.stages import stages, step
from benchmarks.suite.steps import Work, memory, steps
from benchmarks.suite.tables import text
from benchmarks.suite.timing import CLOCKS
from examples.demo.names import gram_methods

SUITES = ("steps", "memory", "providers", "stages", "step", "scaling")
DTYPES = ("float32", "bfloat16", "float16", "float64")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmarks: 0 when done, 1 when a file or a package is missing."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.clock == "cpu" and (options.threads != 1 or options.device.type != "cpu"):
        parser.error("--clock cpu counts one thread's time: add --threads 1 on the CPU")
    try:
        if options.read:
            results = load(options.read)
            print(text(results))
        else:
            torch.set_num_threads(options.threads)
            results = Results(environment(options.device, arguments))
            print(text(results), flush=True)
            try:
                with torch.no_grad():
                    measure(options, results)
            except KeyboardInterrupt:
                print("stopped: what was measured is kept", file=sys.stderr)
            results.environment["load_after"] = load_average()
        if options.json:
            results.save(options.json)
            print(f"results: {options.json}")
        if options.plot:
            for figure in save_figures(results, options.plot):
                print(f"figure:  {figure}")
        for document in options.update or ():
            document.write_text(fill(document.read_text("utf-8"), results), "utf-8")
            print(f"tables:  {document}")
    except (OSError, ValueError) as problem:
        print(problem, file=sys.stderr)
        return 1
    except ModuleNotFoundError as missing:
        print(f"figures need {missing.name}: pip install 'mtlkernels[bench]'", file=sys.stderr)
        return 1
    return 0


def measure(options: argparse.Namespace, results: Results) -> None:
    """Adds the rows of every suite that was asked for, and prints each table when it is there."""

    def add(rows: list[Row]) -> None:
        results.rows += rows
        if options.json:  # what is there is kept when a long run is stopped
            results.save(options.json)
        told = text(Results({}, rows)).strip()
        print(f"{told}\n", flush=True)

    if "step" in options.suites:
        with torch.enable_grad():
            for model, tasks in plans.STEPS_FULL if options.full else plans.STEPS_QUICK:
                add(step(model, tasks, options.methods[0], options.device))
    if "steps" in options.suites:
        with torch.enable_grad():
            for method in options.methods:
                for model, tasks in plans.steps(options.full, options.models, options.tasks):
                    work = Work(model, tasks, method, options.device)
                    add(steps(work, plans.choices(options.choices, options.full), options.seconds))
    if "memory" in options.suites:
        with torch.enable_grad():
            for method in options.methods:
                for model, counts in plans.memories(options.models, options.tasks):
                    works = [Work(model, T, method, options.device) for T in counts]
                    names = plans.choices(options.choices, options.full)
                    add([row for work in works for row in memory(work, names)])
    if "scaling" in options.suites:
        for point in points(options.full):
            add(
                scale(point, options.methods[0], options.device, options.seconds / 8, options.clock)
            )
    tables = plans.tables(options.full, options.case, options.tasks, options.dtype)
    for method in options.methods:
        for table in tables:
            case, tasks, dtype = table
            setting = Setting(
                case,
                tasks,
                getattr(torch, dtype),
                method,
                options.device,
                options.clock,
                options.cached,
            )
            if "providers" in options.suites:
                names = plans.providers(options.providers, CASES[case](), tasks)
                add(compare(setting, names, options.seconds))
            asked = bool(options.case or options.tasks) and options.suites == ["stages"]
            if "stages" in options.suites and (asked or plans.staged(table, options.full)):
                add(stages(setting, options.seconds / 2))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Time from per-task gradients to the direction, beside a copy of the same "
        "bytes and beside the alternatives, each checked against float64 before it is timed.",
    )
    parser.add_argument("--full", action="store_true", help="all cases: some ten minutes")
    add = parser.add_argument
    add("--case", type=_of(CASES), default=[], help=f"of {', '.join(CASES)}")
    add("--tasks", type=_numbers, default=[], help="numbers of tasks, 2,3,8 for example")
    add("--dtype", type=_of(DTYPES), default=[], help=f"of {', '.join(DTYPES)}")
    add("--device", type=torch.device, default=torch.device("cpu"), help="default: cpu")
    add("--threads", type=int, default=torch.get_num_threads(), help="torch's threads")
    add("--clock", choices=CLOCKS, default="wall", help="cpu: one thread on a busy machine")
    add("--cached", action="store_true",
        help="providers: one set of gradients, as a backward leaves them in the cache")  # fmt: skip
    add("--methods", type=gram_methods, default=["pcgrad"], help="Gram methods (default: pcgrad)")
    add("--providers", type=_of(PROVIDERS), default=[], help="names as printed, split by commas")
    add("--models", type=_of(MODELS), default=[], help=f"steps and memory: of {', '.join(MODELS)}")
    add("--choices", type=_of(CHOICES), default=[],
        help="steps and memory: names as printed; the plain step is always there")  # fmt: skip
    add("--suites", type=_of(SUITES), default=["providers", "stages", "step"],
        help=f"of {', '.join(SUITES)} (default: providers, stages, step)")  # fmt: skip
    add("--seconds", type=float, default=2.0, help="budget of a table (default: %(default)s)")
    add("--json", type=Path, help="file to save the results to")
    add("--plot", type=Path, help="folder to draw figures into")
    add("--from", dest="read", type=Path, help="saved results to print and draw: measures nothing")
    add("--update", type=Path, nargs="+", help="documents whose tables to write anew")
    return parser


def _of(known: Collection[str]) -> Callable[[str], list[str]]:
    def parse(given: str) -> list[str]:
        names = [name.strip() for name in given.split(",")]
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(known)}")
        return names

    return parse


def _numbers(given: str) -> list[int]:
    numbers = [int(part) for part in given.split(",") if part.strip().isdecimal()]
    if len(numbers) != len(given.split(",")) or min(numbers, default=0) < 1:
        raise argparse.ArgumentTypeError(f"{given!r} is not a list of positive whole numbers")
    return numbers
