"""Peak of what torch allocates while something runs."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from itertools import accumulate

import torch

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler logs each of its starts otherwise


def peak_bytes(run: Callable[[], object], device: torch.device) -> int:
    """The most bytes that stood allocated beyond what stood before the run.

    On a CUDA device its allocator counts. On the CPU torch's profiler sees each allocation of a
    tensor, from Python or C++; what a library takes from the system for itself (oneDNN's scratch
    space, for example) is in neither number.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with torch.autograd.profiler.profile(profile_memory=True, use_kineto=False) as profile:
        run()
    assert profile.kineto_results is not None
    events = [event for event in profile.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return max(accumulate((event.nbytes() for event in events), initial=0))
