"""The marks of tests in other libraries' training loops: what selects them and may be warned."""

from __future__ import annotations

import pytest

_HINTS = (
    ".*`tensorboardX` has been removed",
    ".*does not have many workers",
    "The number of training batches .* is smaller than the logging interval",
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # by Lightning, to torch
    "'pin_memory' argument is set as true but no accelerator",  # by transformers, to torch
)
FRAMEWORKS = [
    pytest.mark.frameworks,
    *(pytest.mark.filterwarnings(f"ignore:{hint}") for hint in _HINTS),
]
