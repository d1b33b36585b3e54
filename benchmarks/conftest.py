"""What every suite of this folder does: two threads, no autograd, its facts in the JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from benchmarks.suite.direction import Setting
from mtlkernels import build_info

CPU = torch.device("cpu")
# Two sizes that a cache holds and one that it does not; `-k smoke` picks one table.
SETTINGS = [
    pytest.param(
        Setting(case, tasks, torch.float32, "pcgrad", CPU),
        id=f"{'smoke-' if (case, tasks) == ('pinn', 3) else ''}{case}-{tasks}",
    )
    for case in ("pinn", "lenet", "resnet18")
    for tasks in (2, 3, 8)
]


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    with torch.no_grad():
        yield
    torch.set_num_threads(before)


@pytest.fixture
def timed(benchmark: Any) -> Callable[[Setting, Callable[[], object], int], None]:
    """Times a run that moves so many bytes, with the setting and the build beside the times."""

    def time(setting: Setting, run: Callable[[], object], num_bytes: int) -> None:
        benchmark.extra_info.update(
            case=setting.case,
            tasks=setting.tasks,
            dtype=str(setting.dtype),
            bytes=num_bytes,
            **{key: str(value) for key, value in build_info().items()},
        )
        benchmark.pedantic(run, rounds=5, iterations=1, warmup_rounds=2)

    return time
