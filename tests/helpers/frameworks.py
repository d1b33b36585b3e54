"""The marks of tests in other libraries' training loops: what selects them and may be warned."""

from __future__ import annotations

import sys
import types

import pytest

_HINTS = (
    ".*`tensorboardX` has been removed",
    ".*does not have many workers",
    "The number of training batches .* is smaller than the logging interval",
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # by Lightning, to torch
    r"`torch\.jit\.\w+` is deprecated",  # by ignite and mmengine, to torch
    "distutils Version classes are deprecated",  # by torch's tensorboard writer, to setuptools
    r"`\w*gradient_checkpointing\w*` is deprecated",  # by TRL, to transformers
    "'pin_memory' argument is set as true but no accelerator",  # by transformers, to torch
)
FRAMEWORKS = [
    pytest.mark.frameworks,
    *(pytest.mark.filterwarnings(f"ignore:{hint}") for hint in _HINTS),
]


def give_torchvision() -> None:
    """What LibMTL 1.1.5 imports of torchvision, which has it no longer: its users patch it in."""
    names = ("torchvision", "torchvision.models", "torchvision.models.utils")
    for name in names:
        sys.modules.setdefault(name, types.ModuleType(name))
    sys.modules[names[-1]].load_state_dict_from_url = None  # type: ignore[attr-defined]
