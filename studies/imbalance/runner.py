"""Does the runs that are missing, several at a time, each on one thread."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from multiprocessing.queues import SimpleQueue
from typing import Any

import torch

from mtlkernels.extras import require
from studies.imbalance.config import PRETRAINED, Config
from studies.imbalance.problems import DATA
from studies.imbalance.results import best_weights
from studies.imbalance.specs import Spec, dependent_specs, independent_specs, pretrain_of
from studies.imbalance.storage import Folder
from studies.imbalance.training import execute

_told: SimpleQueue[int] | None = None
"""In a worker, where to tell of steps that are done."""


def run_study(config: Config, folder: Folder, jobs: int = 1) -> None:
    """All runs that the folder lacks; killed and started again, it goes on where it was."""
    tasks = {part.data: [task.name for task in DATA[part.data]().tasks] for part in config.parts}
    _run(_missing(independent_specs(config, tasks), folder), config, folder, jobs)
    best = {
        part.name: best_weights(config, folder, part)
        for part in config.parts
        if "grid" in part.methods
    }
    rest = _missing(dependent_specs(config, tasks, best), folder)
    _run(_lost_encoders(rest, folder), config, folder, jobs)
    _run(rest, config, folder, jobs)
    folder.clean()


def _missing(specs: Sequence[Spec], folder: Folder) -> list[Spec]:
    return [spec for spec in specs if folder.result(spec) is None]


def _lost_encoders(specs: Sequence[Spec], folder: Folder) -> list[Spec]:
    """The pre-trainings that these runs start from whose encoder is no longer there.

    A finished study keeps none, and may lack runs again: one was deleted, or the levels changed.
    """
    starts = dict.fromkeys(pretrain_of(spec) for spec in specs if spec.setting == PRETRAINED)
    return [spec for spec in starts if folder.load(spec, "encoder") is None]


def _run(specs: Sequence[Spec], config: Config, folder: Folder, jobs: int) -> None:
    if not specs:
        return
    total = sum(spec.part.steps for spec in specs)
    tqdm = require("tqdm", "the study").tqdm
    with tqdm(total=total, unit="step", desc=f"{len(specs)} runs") as bar:
        if jobs == 1:
            with _one_thread():
                for spec in specs:
                    bar.set_postfix_str(spec.name)
                    execute(spec, folder, config.checkpoint_every, bar.update)
        else:
            _run_apart(specs, config, folder, jobs, bar)


def _run_apart(specs: Sequence[Spec], config: Config, folder: Folder, jobs: int, bar: Any) -> None:
    """`jobs` processes, which end with this one however it ends."""
    context = multiprocessing.get_context("spawn")
    told: SimpleQueue[int] = context.SimpleQueue()
    with (
        _listening(told, bar),
        ProcessPoolExecutor(jobs, context, _begin_worker, (told,)) as pool,
    ):
        waiting = {
            pool.submit(_execute, spec, folder, config.checkpoint_every, jobs): spec
            for spec in specs
        }
        try:
            for future in as_completed(waiting):
                future.result()
                bar.set_postfix_str(waiting[future].name)
        except BaseException:
            _give_up(list(waiting))
            raise


@contextmanager
def _listening(told: SimpleQueue[int], bar: Any) -> Iterator[None]:
    """Moves the bar as long as there are workers: one that nobody hears waits on a full pipe."""
    listener = threading.Thread(target=_listen, args=(told, bar), daemon=True)
    listener.start()
    try:
        yield
    finally:
        told.put(0)
        listener.join()


def _give_up(futures: Sequence[Future[None]]) -> None:
    for future in futures:
        future.cancel()


def _listen(told: SimpleQueue[int], bar: Any) -> None:
    """Moves the bar until a zero comes."""
    while steps := told.get():
        bar.update(steps)


def _begin_worker(told: SimpleQueue[int]) -> None:
    global _told
    _told = told
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A parent that was killed cannot stop its workers, and two of one run must not be."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _execute(spec: Spec, folder: Folder, checkpoint_every: int, jobs: int) -> None:
    assert _told is not None
    execute(spec, folder, checkpoint_every, _told.put, jobs)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Numbers, and times of steps this small, must not hang on how many cores there are."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
