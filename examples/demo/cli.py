"""Command line of the demo: parse, train, print, save."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from examples.demo.figure import save_figure
from examples.demo.multimnist import multimnist_problem
from examples.demo.names import gram_methods
from examples.demo.problem import Problem
from examples.demo.record import log_path, write_run, write_single
from examples.demo.stereo import stereo_problem
from examples.demo.table import NOTES, format_table
from examples.demo.training import Run, train, train_single
from mtlkernels.extras import MissingPackageError, require

DATASETS: dict[str, Callable[[torch.device], Problem]] = {
    "stereo": stereo_problem,
    "multimnist": multimnist_problem,
}
DEFAULT_METHODS = "mean,avgnorm,pcgrad,cagrad"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo: 0 when done, 1 when a package is missing; wrong arguments exit with 2."""
    arguments = _parser().parse_args(argv)
    names = list(DATASETS) if arguments.dataset == "all" else [arguments.dataset]
    try:
        for package in ("tqdm", "matplotlib"):
            require(package)
        problems = [DATASETS[name](arguments.device) for name in names]
    except MissingPackageError as missing:
        print(missing, file=sys.stderr)
        return 1
    arguments.out.mkdir(parents=True, exist_ok=True)
    with _one_thread():
        results = [
            (problem, run_problem(problem, arguments.methods, arguments.steps, arguments.out))
            for problem in problems
        ]
    print("\n".join(NOTES), end="\n\n")
    print(f"figure: {save_figure(arguments.out / 'steps.png', results)}")
    print(f"runs:   {arguments.out}/*.json")
    for problem, runs in results:
        log = log_path(arguments.out, problem, runs[0].method)
        print(f"log:    python -m mtlkernels report {log}")
    return 0


def run_problem(problem: Problem, methods: list[str], steps: int | None, out: Path) -> list[Run]:
    """Train baselines and methods on one data set, print its table, write its logs."""
    steps = problem.steps if steps is None else steps
    device = problem.test.inputs.device
    single = {task.name: train_single(problem, task, steps, device) for task in problem.tasks}
    runs = []
    for method in methods:
        log = log_path(out, problem, method)
        log.unlink(missing_ok=True)  # a log grows, and an earlier run's is not this one's
        runs.append(train(problem, method, steps, device, log))
    write_single(out, problem, single, steps)
    for run in runs:
        write_run(out, problem, run, single)
    print(f"\n{format_table(problem, runs, single)}\n", flush=True)
    return runs


@contextmanager
def _one_thread() -> Iterator[None]:
    """One CPU thread for torch inside the block.

    Steps this small gain little from a second thread, and on a busy machine two that wait for each
    other at every layer have been ten times slower than one.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m examples.demo",
        description="Train small networks on real bundled data under several methods and compare.",
    )
    parser.add_argument("--dataset", choices=[*DATASETS, "all"], default="all")
    parser.add_argument(
        "--methods", type=gram_methods, default=DEFAULT_METHODS, help="default: %(default)s"
    )
    parser.add_argument("--steps", type=_steps, help="steps a run (default: chosen per data set)")
    parser.add_argument("--device", type=_device, default="cpu", help="default: %(default)s")
    parser.add_argument(
        "--out", type=Path, default=Path("mtlkernels-demo"), help="folder (default: %(default)s)"
    )
    return parser


def _steps(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)


def _device(text: str) -> torch.device:
    try:
        return torch.empty(0, device=text).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise argparse.ArgumentTypeError(f"device {text!r} cannot be used: {reason}") from error
