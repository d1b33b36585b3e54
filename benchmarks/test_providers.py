"""Every provider's way from per-task gradients to the direction, after a check of its answer.

pytest benchmarks --benchmark-only --benchmark-autosave     # and --benchmark-compare later
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from benchmarks.conftest import SETTINGS
from benchmarks.suite.direction import Setting, copy_of
from benchmarks.suite.oracle import oracle
from benchmarks.suite.peers import NotOfferedError
from benchmarks.suite.providers import PROVIDERS, SLOW_TO_SET_UP

NAMES = [name for name in PROVIDERS if name not in SLOW_TO_SET_UP]


@pytest.mark.parametrize("work", SETTINGS)
@pytest.mark.parametrize("name", ["copy", *NAMES])
def test_provider(benchmark: Any, timed: Callable[..., None], name: str, work: Setting) -> None:
    tasks = work.tasks
    benchmark.group = f"{work.case}, T = {tasks}"
    moved = (2 * tasks + 1) * work.row_bytes
    if name == "copy":
        timed(work, copy_of(moved, work.dtype, work.device), moved)
        return
    try:
        prepare = PROVIDERS[name](tasks, work.method)
    except NotOfferedError as reason:
        pytest.skip(str(reason))
    grads = work.gradients()
    right = oracle(grads, tasks, work.method)
    run = prepare(grads)
    assert right.error(run(), grads) <= right.tolerance
    timed(work, run, moved)
