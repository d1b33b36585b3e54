"""The stages of balancing one by one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from benchmarks.conftest import SETTINGS
from benchmarks.suite.direction import Setting
from benchmarks.suite.stages import STAGES, runs_of_stages


@pytest.mark.parametrize("work", SETTINGS)
@pytest.mark.parametrize("stage", STAGES)
def test_stage(benchmark: Any, timed: Callable[..., None], stage: str, work: Setting) -> None:
    tasks = work.tasks
    benchmark.group = f"{stage}, {work.case}, T = {tasks}"
    moved = {"gram": tasks, "combine": tasks + 1, "whole": 2 * tasks + 1}.get(stage, 0)
    run = runs_of_stages(work.gradients(), tasks, work.method)[stage]
    timed(work, run, moved * work.row_bytes)
