"""Who serves which op on which device: decided once, at import, and told by `backends()`.

On each device the first that can serve an op does: CPU native, else reference; CUDA native, else
Triton, else reference; other devices Triton, else reference. MTLKERNELS_BACKEND=reference, triton
or native forces one, and the import fails with every reason where it cannot serve.
"""

from __future__ import annotations

import importlib
import os
from types import ModuleType
from typing import Any

import torch

from mtlkernels import cuda_library, ops, reference
from mtlkernels.version import __version__

CHOICES = ("native", "triton", "reference")

native: ModuleType | None = None
# device -> backend -> why it serves nothing there; (device, backend) -> the ops it has kernels for.
_reasons: dict[str, dict[str, str]] = {"cpu": {}, "cuda": {}}
_kernels: dict[tuple[str, str], set[str]] = {}


def _load_native() -> ModuleType | None:
    """Imports the C++ library, which registers the CPU kernels; or notes why not."""
    try:
        found = importlib.import_module("mtlkernels._C")
    except ImportError as error:
        _reasons["cpu"]["native"] = (
            f"mtlkernels._C cannot be imported ({error}): build it with "
            "`pip install --no-build-isolation .` and a C++20 compiler"
        )
        return None
    built = found.build_info()["version"]
    if built != __version__:  # its kernels are registered by now, and may compute something else
        raise ImportError(
            f"mtlkernels is version {__version__} and its compiled {found.__file__} is of {built}: "
            "build it again with `pip install --no-build-isolation .`, or delete it"
        )
    return found


def _load_cuda() -> None:
    """Loads the CUDA library, which registers the CUDA kernels; or notes why not."""
    reason = cuda_library.load()
    if reason is not None:
        _reasons["cuda"]["native"] = reason


def _native_ops(device: str) -> set[str]:
    """The ops that the libraries just loaded have a kernel for on that device."""
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    return {name for name in ops.SCHEMAS if has_kernel(f"mtlkernels::{name}", device.upper())}


def _serve_reference() -> None:
    """The plain torch ops, on every device that has nothing of its own."""
    for name in ops.SCHEMAS:
        ops.LIBRARY.impl(name, getattr(reference, name), "CompositeExplicitAutograd")


def _devices() -> list[str]:
    """The kinds of device that are here and that torch sees, besides the CPU."""
    kinds = {"cuda": torch.cuda.device_count, "xpu": torch.xpu.device_count}
    return [kind for kind, count in kinds.items() if count() > 0]


def _serve_triton(device: str, wanted: set[str]) -> None:
    """Triton's kernels for these ops, or a note why not; imports Triton only where it can serve."""
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if device == "cpu" and not interpreted:
        reason = "Triton kernels serve GPUs, and the CPU under TRITON_INTERPRET=1 alone"
    elif device != "cpu" and interpreted:
        reason = "TRITON_INTERPRET=1 runs Triton's kernels on the CPU: unset it"
    elif device not in ("cpu", *_devices()):
        reason = f"no {device.upper()} device is seen"
    else:
        try:
            kernels = importlib.import_module("mtlkernels.triton_kernels").OPS
        except ImportError as error:
            reason = f"Triton cannot be imported ({error}): pip install triton"
        else:
            _kernels[device, "triton"] = kernels.keys() & wanted
            for name in _kernels[device, "triton"]:
                ops.LIBRARY.impl(name, kernels[name], device.upper())
            return
    _reasons[device]["triton"] = reason


def _decide() -> None:
    global native
    forced = os.environ.get("MTLKERNELS_BACKEND", "")
    if forced and forced not in CHOICES:
        raise ImportError(
            f"MTLKERNELS_BACKEND={forced}: choose one of {', '.join(CHOICES)}, or leave it unset"
        )
    if forced in ("", "native"):
        native = _load_native()
        _load_cuda()
    for device in ("cpu", "cuda", *_devices()):
        reasons = _reasons.setdefault(device, {})
        if forced in ("reference", "triton"):
            reasons["native"] = f"MTLKERNELS_BACKEND={forced}"
        elif device not in ("cpu", "cuda"):
            reasons["native"] = "native kernels serve CPUs and NVIDIA GPUs"
        if "native" not in reasons:
            _kernels[device, "native"] = _native_ops(device)
        left = ops.SCHEMAS.keys() - _kernels.get((device, "native"), set())
        if forced in ("reference", "native"):
            reasons["triton"] = f"MTLKERNELS_BACKEND={forced}"
        elif device == "cpu" and not forced:
            reasons["triton"] = "Triton kernels serve GPUs"
        elif not left:
            reasons["triton"] = "native kernels serve every op"
        elif (device, "triton") not in _kernels:
            _serve_triton(device, left)
    lacking = native is None or ("cuda" in _devices() and "native" in _reasons["cuda"])
    nowhere = all(backend != "triton" for _, backend in _kernels)
    if (forced == "triton" and nowhere) or (forced == "native" and lacking):
        told = "; ".join(f"{d}: {r[forced]}" for d, r in _reasons.items() if forced in r)
        raise ImportError(f"MTLKERNELS_BACKEND={forced} cannot serve. {told}")
    _serve_reference()


_decide()


def _entry(device: str, op: str) -> dict[str, Any]:
    """Who serves one op on one device, and why not the others."""
    reasons = dict(_reasons[device])
    for name in ("native", "triton"):
        if name not in reasons and op not in _kernels[device, name]:
            reasons[name] = f"there is no {name} kernel for this op"
    serves = next(name for name in CHOICES if name not in reasons)
    others = {
        name: reasons.get(name, f"{serves} comes first on this device")
        for name in CHOICES
        if name != serves
    }
    return {"serves": serves, "others": others}


def backends() -> dict[str, dict[str, dict[str, Any]]]:
    """Who serves each op on each device, and why the others do not.

    Returns:
        device -> op -> {"serves": backend, "others": {backend: reason}}. A device torch cannot
        reach here says so under the key "unavailable" of its entries.
    """
    told: dict[str, dict[str, dict[str, Any]]] = {}
    for device in _reasons:
        told[device] = {op: _entry(device, op) for op in ops.SCHEMAS}
        if device == "cuda" and not torch.cuda.is_available():
            reason = (
                "this torch has no CUDA" if torch.version.cuda is None else "no CUDA device is seen"
            )
            for entry in told[device].values():
                entry["unavailable"] = reason
    return told


def build_info() -> dict[str, Any]:
    """Versions, and the native build's facts where there is one."""
    facts: dict[str, Any] = {"torch": torch.__version__, "cuda": torch.version.cuda}
    if native is not None:
        facts.update(native.build_info())
    return facts
