"""Compiles Triton's kernels for a GPU that is not here, into the cache that its launches look at.

    TRITON_CACHE_DIR=DIR python -m benchmarks.gpu_check.warm_triton 90

The launch code runs on CPU tensors with a driver that names the GPU; each launch ends where the
kernel is compiled.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from mtlkernels.triton_kernels import OPS, launch
from mtlkernels.triton_kernels.gradient_lists import ABSENT

TASKS = (1, 2, 3, 4, 5, 6, 7, 8, 9)  # nine and more share their kernels
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class AbsentGpu:
    """What Triton asks of a driver before it launches."""

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


def lists(T: int, dtype: torch.dtype) -> Iterator[list[Tensor]]:
    """Aligned and misaligned gradients."""
    yield [torch.ones(64, dtype=dtype) for _ in range(T)]
    yield [torch.ones(65, dtype=dtype)[1:] for _ in range(T)]


def launch_all(T: int) -> None:
    """Every op for T tasks."""
    weights = torch.ones(T, dtype=torch.float64)
    seed = torch.zeros((), dtype=torch.int64)
    for dtype in DTYPES:
        for grads in lists(T, dtype):
            OPS["gram"](grads, T)
            flat = OPS["combine"](grads, weights)
            OPS["combine"](grads, weights.float())
            OPS["graddrop"](grads, T, seed, seed, weights)
            for out in {dtype, torch.float32 if dtype.itemsize == 2 else dtype}:
                for beta in (0.0, 1.0):
                    OPS["combine_out"](grads, weights, flat.to(out), beta)
    K = torch.eye(T, dtype=torch.float64)
    order = torch.zeros(T, T - 1, dtype=torch.int64)
    for mean in (False, True):
        OPS["pcgrad"](K, order, mean)
        for rescale in (0, 1, 2):
            OPS["cagrad"](K, 0.4, rescale, mean)


def main() -> None:
    driver.set_active(AbsentGpu(int(sys.argv[1])))
    run = JITFunction.run
    JITFunction.run = lambda self, *args, **options: run(self, *args, **{**options, "warmup": True})
    launch._by_value([ABSENT.value], torch.device("cpu"))
    launch_all(3)  # alone first: it fills what the threads share
    with ThreadPoolExecutor() as pool:
        list(pool.map(launch_all, [*TASKS, 17, 33, 64]))
    print(f"Triton {triton.__version__}: kernels for sm_{sys.argv[1]} are compiled")


if __name__ == "__main__":
    main()
