"""Lists of hundreds of tensors on the CPU; test_gpu.py runs longer ones on a device."""

from __future__ import annotations

import pytest
import torch
from long_lists import TASKS, check_long_list

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("T", TASKS)
def test_long_lists(T: int) -> None:
    check_long_list(500, T, torch.float32 if T % 2 else torch.bfloat16, "cpu")
