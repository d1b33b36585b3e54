"""Who serves which op on which device: decided once, at import, and told by `backends()`.

On each device the first that can serve an op does: CPU native, else reference; CUDA native, else
Triton, else reference; other devices Triton, else reference. MTLKERNELS_BACKEND=reference, triton
or native forces one, and the import fails with every reason where it cannot serve.
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from mtlkernels import ops, reference

CHOICES = ("native", "triton", "reference")

native: ModuleType | None = None
_reasons: dict[str, dict[str, str]] = {"cpu": {}, "cuda": {}}


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


def _load_cuda() -> None:
    """Loads the CUDA library, which registers the CUDA kernels; or notes why not."""
    found = sorted(Path(__file__).parent.glob("_C_cuda*.so"))
    if torch.version.cuda is None:
        reason = "this torch has no CUDA"
    elif not found:
        reason = (
            "this build has no CUDA library: build it with `pip install --no-build-isolation .` "
            "and nvcc"
        )
    else:
        try:
            torch.ops.load_library(str(found[0]))
            return
        except OSError as error:
            reason = f"{found[0].name} cannot be loaded ({error}): build it again for this torch"
    _reasons["cuda"]["native"] = reason


def _serve_reference() -> None:
    """The plain torch ops, on every device that has nothing of its own."""
    for name in ops.SCHEMAS:
        ops.LIBRARY.impl(name, getattr(reference, name), "CompositeExplicitAutograd")


def _decide() -> None:
    global native
    forced = os.environ.get("MTLKERNELS_BACKEND", "")
    if forced and forced not in CHOICES:
        raise ImportError(
            f"MTLKERNELS_BACKEND={forced}: choose one of {', '.join(CHOICES)}, or leave it unset"
        )
    _reasons["cpu"]["triton"] = "Triton kernels serve GPUs"
    _reasons["cuda"]["triton"] = "this version has no Triton kernels"
    if forced == "reference":
        for reasons in _reasons.values():
            reasons["native"] = reasons["triton"] = "MTLKERNELS_BACKEND=reference"
    else:
        native = _load_native()
        _load_cuda()
    missing = native is None or (torch.version.cuda and "native" in _reasons["cuda"])
    if forced == "triton" or (forced == "native" and missing):
        told = "; ".join(f"{d}: {r[forced]}" for d, r in _reasons.items() if forced in r)
        raise ImportError(f"MTLKERNELS_BACKEND={forced} cannot serve. {told}")
    _serve_reference()


_decide()


def backends() -> dict[str, dict[str, dict[str, Any]]]:
    """Who serves each op on each device, and why the others do not.

    Returns:
        device -> op -> {"serves": backend, "others": {backend: reason}}. A device torch cannot
        reach here says so under the key "unavailable" of its entries.
    """
    told: dict[str, dict[str, dict[str, Any]]] = {}
    for device, reasons in _reasons.items():
        serves = next(name for name in CHOICES if name not in reasons)
        others = {
            name: reasons.get(name, f"{serves} comes first on this device")
            for name in CHOICES
            if name != serves
        }
        entry: dict[str, Any] = {"serves": serves, "others": others}
        if device == "cuda" and not torch.cuda.is_available():
            entry["unavailable"] = (
                "this torch has no CUDA" if torch.version.cuda is None else "no CUDA device is seen"
            )
        told[device] = {op: dict(entry) for op in ops.SCHEMAS}
    return told


def build_info() -> dict[str, Any]:
    """Versions, and the native build's facts where there is one."""
    facts: dict[str, Any] = {"torch": torch.__version__, "cuda": torch.version.cuda}
    if native is not None:
        facts.update(native.build_info())
    return facts
