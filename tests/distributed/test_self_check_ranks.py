"""The first-step self-check over two processes on gloo: the scenarios of dist_self_check.py."""

from __future__ import annotations

import dist_harness
import pytest
import torch

pytestmark = pytest.mark.dist

MODULE = "dist_self_check"


@pytest.fixture(scope="module")
def outcome() -> dist_harness.Outcome:
    if dist_harness.NCCL and torch.cuda.device_count() < 2:
        pytest.skip("fewer than 2 GPUs")
    return dist_harness.run([MODULE], 2)


@pytest.mark.parametrize("name", dist_harness.scenarios([MODULE], 2))
def test_scenario(name: str, outcome: dist_harness.Outcome) -> None:
    for rank, error in enumerate(outcome[name]):
        assert not error, f"rank {rank}: {error}"
