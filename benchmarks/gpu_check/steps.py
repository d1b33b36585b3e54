"""Stage "steps": whole training steps on ResNet-18 and a small ViT, with launches and host time.

Beside one backward of the sum of the losses: T backwards alone, ours with every task gradient, and
ours with weights from the features. Host time is what Python takes to have launched the step.
"""

from __future__ import annotations

import copy
import statistics
import time
import warnings
from collections.abc import Callable

import torch

from benchmarks.choices import CHOICES, GRADIENTS, PLAIN, ROWS
from benchmarks.gpu_check.records import Records, device, is_short
from benchmarks.gpu_check.timing import Deadline, synchronize
from benchmarks.models import MODELS

OURS = [ROWS, "ours features="]
METHOD = "upgrad"


def launches(step: Callable[[], object]) -> int | None:
    """How many kernels and copies a step runs on the device."""
    if device() != "cuda":
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            step()
            synchronize()
    on_device = torch.autograd.DeviceType.CUDA  # type: ignore[attr-defined]  # not in its __all__
    return sum(event.device_type == on_device for event in profile.events())


def times(step: Callable[[], object], rounds: int) -> tuple[float, float]:
    """Median seconds from a step's call to the device being done, and to the call's return."""
    whole, host = [], []
    for _ in range(rounds):
        synchronize()
        start = time.perf_counter()
        step()
        host.append(time.perf_counter() - start)
        synchronize()
        whole.append(time.perf_counter() - start)
    return statistics.median(whole), statistics.median(host)


def measure(records: Records, model: str, T: int, name: str) -> None:
    torch.manual_seed(0)
    work = MODELS[model](T).to(torch.device(device()))
    run = CHOICES[name](copy.deepcopy(work) if device() == "cpu" else work, METHOD)

    def step() -> None:
        work.model.zero_grad(set_to_none=True)
        run()

    for _ in range(1 if is_short() else 5):
        step()
    seconds, host = times(step, 2 if is_short() else 20)
    records.add(
        "step", model=model, T=T, run=name, seconds=seconds, host_seconds=host,
        launches=launches(step),
    )  # fmt: skip


def main() -> None:
    deadline, records = Deadline(__doc__), Records.of_this_stage()
    models = ["mlp"] if is_short() else ["resnet18", "vit"]
    for T in [2] if is_short() else [3, 8]:
        for model in models:
            for name in [PLAIN, GRADIENTS, *OURS]:
                if deadline.is_over():
                    records.add("left out", model=model, T=T, run=name)
                    continue
                try:
                    measure(records, model, T, name)
                except Exception as problem:
                    failed = f"{type(problem).__name__}: {problem}"[:500]
                    records.add("step", model=model, T=T, run=name, failed=failed)


if __name__ == "__main__":
    main()
