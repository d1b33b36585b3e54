"""What a run does besides taking time: memory at its peak, operators, reads to the host."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler logs each of its starts otherwise

HOST_READ = "aten::_local_scalar_dense"  # what Tensor.item, bool(tensor) and float(tensor) end in
CUDA_WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")


@dataclass(frozen=True)
class Observed:
    """One run.

    Attributes:
        peak: the most bytes that stood allocated beyond what stood before.
        operators: those that Python called; on a CUDA device the kernels that were launched.
        reads: how often the host waited for a number.
    """

    peak: int
    operators: int
    reads: int


def peak_bytes(run: Callable[[], object], device: torch.device) -> int:
    """The most bytes that stood allocated beyond what stood before the run; see `observe`."""
    return observe(run, device).peak


def observe(run: Callable[[], object], device: torch.device) -> Observed:
    """Watches one run.

    On a CUDA device its allocator counts the bytes. On the CPU torch's profiler sees each
    allocation of a tensor, from Python or C++; what a library takes from the system for itself
    (oneDNN's scratch space, the partial sums of our Gram matrix, which are bounded by 1 MiB) is in
    neither number.
    """
    gc.collect()
    if device.type == "cuda":
        return _observe_cuda(run, device)
    with torch.autograd.profiler.profile(profile_memory=True, use_kineto=False) as profile:
        run()
    assert profile.kineto_results is not None
    memory = [event for event in profile.kineto_results.events() if event.name() == "[memory]"]
    memory.sort(key=lambda event: event.start_ns())
    peak = max(accumulate((event.nbytes() for event in memory), initial=0))
    calls = [event for event in profile.function_events or () if _is_operator(event)]
    reads = sum(event.name == HOST_READ for event in calls)
    return Observed(peak, sum(not _inside_another(event) for event in calls), reads)


def _is_operator(event: Any) -> bool:
    return event.name.startswith(("aten::", "mtlkernels::"))


def _inside_another(event: Any) -> bool:
    parent = event.cpu_parent
    while parent is not None:
        if _is_operator(parent):
            return True
        parent = parent.cpu_parent
    return False


def _observe_cuda(run: Callable[[], object], device: torch.device) -> Observed:
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    run()
    torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_allocated(device) - before
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        run()
    events = profile.events() or ()
    on_device = torch._C._autograd.DeviceType.CUDA
    launched = [e for e in events if e.device_type == on_device and not e.name.startswith("Mem")]
    return Observed(peak, len(launched), sum(event.name in CUDA_WAITS for event in events))
