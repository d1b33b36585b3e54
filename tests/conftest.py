"""Fixtures of all tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from inputs import DTYPES


@pytest.fixture(params=DTYPES.values(), ids=DTYPES.keys())
def float_dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """Every dtype a gradient may have."""
    return request.param


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Fills fresh memory with NaN, so that what a kernel does not write shows.

    torch does so itself in deterministic mode, inside aten::new_empty: also for what C++ allocates,
    where no patch of a Python function reaches.
    """
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.utils.deterministic.fill_uninitialized_memory = fill
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Keeps torch on one thread: on small tensors and a shared machine, threads mostly wait.

    That the number of threads changes nothing is what test_determinism.py proves.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def seeded() -> None:
    """The same random gradients in every run: bounds on rounding errors are sharp, not generous."""
    torch.manual_seed(0)
