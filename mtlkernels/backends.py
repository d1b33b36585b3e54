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

from mtlkernels import ops, reference

CHOICES = ("native", "triton", "reference")

native: ModuleType | None = None
_reasons: dict[str, dict[str, str]] = {"cpu": {}, "cuda": {}}
_triton_ops: dict[str, set[str]] = {}  # device -> the ops that Triton serves there


def _load_native() -> ModuleType | None:
    """Imports the C++ library, which registers the CPU kernels; or notes why not."""
    try:
        return importlib.import_module("mtlkernels._C")
    except ImportError as error:
        _reasons["cpu"]["native"] = (
            f"mtlkernels._C cannot be imported ({error}): build it with "
            "`pip install --no-build-isolation .` and a C++20 compiler"
        )
        return None


def _serve_reference() -> None:
    """The plain torch ops, on every device that has nothing of its own."""
    for name in ops.SCHEMAS:
        ops.LIBRARY.impl(name, getattr(reference, name), "CompositeExplicitAutograd")


def _devices() -> list[str]:
    """The kinds of device that are here and that torch sees, besides the CPU."""
    kinds = {"cuda": torch.cuda.device_count, "xpu": torch.xpu.device_count}
    return [kind for kind, count in kinds.items() if count() > 0]


def _serve_triton(device: str) -> None:
    """Triton's kernels on that device, or a note why not; imports Triton only where it can serve.

    To be called where nothing native serves.
    """
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
            names = _triton_ops[device] = kernels.keys() & ops.SCHEMAS.keys()
            for name in names:
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
    for device in ("cpu", "cuda", *_devices()):
        reasons = _reasons.setdefault(device, {})
        if forced in ("reference", "triton"):
            reasons["native"] = f"MTLKERNELS_BACKEND={forced}"
        elif device != "cpu":
            reasons["native"] = "this build has no CUDA library"
        if forced in ("reference", "native"):
            reasons["triton"] = f"MTLKERNELS_BACKEND={forced}"
        elif device == "cpu" and not forced:
            reasons["triton"] = "Triton kernels serve GPUs"
        elif device not in _triton_ops:
            _serve_triton(device)
    if (forced == "triton" and not _triton_ops) or (forced == "native" and native is None):
        told = "; ".join(f"{d}: {r[forced]}" for d, r in _reasons.items() if forced in r)
        raise ImportError(f"MTLKERNELS_BACKEND={forced} cannot serve. {told}")
    _serve_reference()


_decide()


def _entry(device: str, op: str) -> dict[str, Any]:
    """Who serves one op on one device, and why not the others."""
    reasons = dict(_reasons[device])
    if "triton" not in reasons and op not in _triton_ops[device]:
        reasons["triton"] = "Triton has no kernel for this op"
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
