"""The CUDA library: which file is this Python's, what it was built for, and which GPUs it serves.

Nothing here starts CUDA: a process that has only imported mtlkernels can still fork. What GPUs
there are is asked of NVML, as torch.cuda.device_count does.
"""

from __future__ import annotations

import ctypes
import mmap
import warnings
from collections.abc import Sequence
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import torch

from mtlkernels.version import __version__

FOLDER = Path(__file__).parent
HOW = "`pip install --no-build-isolation .` and nvcc"

Gpu = tuple[str, tuple[int, int]]  # name, compute capability


def load() -> str | None:
    """Loads the library, which registers its kernels; returns the reason where it cannot serve."""
    if torch.version.cuda is None:
        return "this torch has no CUDA"
    path, reason = find(FOLDER, EXTENSION_SUFFIXES)
    if path is None:
        return reason
    built, architectures = facts(path)
    if built != __version__:
        return f"{path.name} is of version {built}, not {__version__}: build it again with {HOW}"
    gpus = visible_gpus()
    missing = [gpu for gpu in gpus if not has_kernels(architectures, gpu[1])]
    if missing:
        reason = lacking(architectures, missing)
        if len(missing) == len(gpus):
            return reason
        warnings.warn(f"mtlkernels: {reason}", RuntimeWarning, stacklevel=2)
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        return f"{path.name} cannot be loaded ({error}): build it again with {HOW}"
    return None


def find(folder: Path, suffixes: Sequence[str]) -> tuple[Path | None, str]:
    """The library that was built for the Python with these suffixes, or why there is none."""
    path = next((p for s in suffixes if (p := folder / f"_C_cuda{s}").exists()), None)
    others = sorted(p.name for p in folder.glob("_C_cuda*.so") if p != path)
    if path is not None:
        return path, ""
    if others:
        return None, (
            f"{', '.join(others)} was built for another Python; this one's is "
            f"_C_cuda{suffixes[0]}: build it with {HOW}"
        )
    return None, f"this build has no CUDA library: build it with {HOW}"


MARK = b"mtlkernels CUDA library "  # csrc/torch/cuda_build.cpp


def facts(path: Path) -> tuple[str, str]:
    """The version a library was built from, and the architectures that it has code for.

    Read in the file: loading it would register its kernels.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        at = data.find(MARK)
        if at < 0:
            return "unknown", ""
        told = data[at + len(MARK) : data.find(b"\0", at)].decode()
    version, _, architectures = told.partition(" for ")
    return version, architectures


def has_kernels(architectures: str, capability: tuple[int, int]) -> bool:
    """Whether code for "8.0;9.0;12.0;12.0+PTX", say, runs on a GPU of this compute capability.

    Machine code runs on the same major version from its minor version on; PTX is compiled by the
    driver for whatever comes later.
    """
    for entry in architectures.split(";"):
        name, _, ptx = entry.partition("+")
        major, minor = (int(part) for part in name.rstrip("af").split("."))
        exact = name[-1] in "af"  # code for this architecture's own instructions runs nowhere else
        if capability == (major, minor) or (ptx and not exact and capability > (major, minor)):
            return True
        if not exact and capability[0] == major and capability[1] > minor:
            return True
    return False


def lacking(architectures: str, gpus: Sequence[Gpu]) -> str:
    """The sentence for GPUs that a build has no code for."""
    named = ", ".join(f"{name} ({major}.{minor})" for name, (major, minor) in gpus)
    wanted = ";".join(sorted({f"{major}.{minor}" for _, (major, minor) in gpus}))
    return (
        f"the CUDA library has kernels for compute capability {architectures} and none for "
        f'{named}: build it with TORCH_CUDA_ARCH_LIST="{wanted}"'
    )


def visible_gpus() -> list[Gpu]:
    """The GPUs that torch sees, by NVML; none where NVML or torch cannot say."""
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
        if nvml.nvmlInit_v2():
            return []
        return [
            _gpu(nvml, torch.cuda._get_nvml_device_index(device))
            for device in range(torch.cuda.device_count())
        ]
    except (OSError, AttributeError, RuntimeError):
        return []


def _gpu(nvml: ctypes.CDLL, index: int) -> Gpu:
    handle, name = ctypes.c_void_p(), ctypes.create_string_buffer(96)
    major, minor = ctypes.c_int(), ctypes.c_int()
    if (
        nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle))
        or nvml.nvmlDeviceGetName(handle, name, 96)
        or nvml.nvmlDeviceGetCudaComputeCapability(handle, ctypes.byref(major), ctypes.byref(minor))
    ):
        raise RuntimeError(f"NVML does not describe device {index}")
    return name.value.decode(), (major.value, minor.value)
