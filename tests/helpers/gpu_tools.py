"""What tests on a CUDA device share: gradients there, and torch's own modes, always put back."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator

import pytest
import torch
from inputs import sample
from torch import Tensor

import mtlkernels

on_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def cuda_sample(name: str, dtype: torch.dtype) -> tuple[list[Tensor], int]:
    """A sample in its own layouts: a copy that keeps storage, strides and what is shared."""
    grads, num_tasks = sample(name, dtype)
    moved: dict[int, Tensor] = {}
    for grad in grads:
        storage = grad.untyped_storage()
        if storage.data_ptr() not in moved:
            whole = torch.empty(0, dtype=dtype).set_(storage)
            moved[storage.data_ptr()] = whole.cuda()
    return [
        moved[g.untyped_storage().data_ptr()].as_strided(g.shape, g.stride(), g.storage_offset())
        for g in grads
    ], num_tasks


def served() -> str:
    return mtlkernels.backends()["cuda"]["gram"]["serves"]


def rows(num_tasks: int = 3, scale: float = 1.0) -> list[list[Tensor]]:
    generator = torch.Generator(device="cuda").manual_seed(num_tasks)
    shapes = [(300, 401), (70_001,), (5, 7)]
    return [
        [scale * torch.randn(s, generator=generator, device="cuda") for s in shapes]
        for _ in range(num_tasks)
    ]


def answers(task_grads: list[list[Tensor]], method: torch.nn.Module) -> list[Tensor]:
    direction, report = mtlkernels.aggregate(task_grads, method)
    return [x for x in (report.gram, report.weights) if x is not None] + direction


@contextlib.contextmanager
def errors_on_sync() -> Iterator[None]:
    """Makes waiting for the device an error; whatever happens, the mode is what it was before.

    Choosing a mode warns that it is a prototype, which says nothing about the test.
    """
    before = torch.cuda.get_sync_debug_mode()
    try:
        _set_sync_mode("error")
        yield
    finally:
        _set_sync_mode(before)


def _set_sync_mode(mode: int | str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.cuda.set_sync_debug_mode(mode)


def launches(step: Callable[[], object]) -> list[str]:
    """The names of what a step runs on the device.

    torch 2.10 to 2.12 warn at every start of a profiler that events of earlier cycles are cleared.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            step()
            torch.cuda.synchronize()
    on_device = torch.autograd.DeviceType.CUDA
    return [event.name for event in profile.events() if event.device_type == on_device]
