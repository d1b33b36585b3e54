"""One call of every op on a CUDA device for each of its samples, beside the CPU's answer."""

from __future__ import annotations

import pytest
import torch
from gpu_tools import on_gpu
from op_samples import OP_SAMPLES
from solver_cases import ARGUMENTS, check_same
from torch import Tensor

pytestmark = on_gpu


def tensors(value: object) -> list[Tensor]:
    """All tensors of a call's arguments or results, in order."""
    if isinstance(value, Tensor):
        return [value]
    return [x for part in value for x in tensors(part)] if isinstance(value, tuple | list) else []


def copied(value: object, device: str) -> object:
    """The same value with its tensors copied to a device, their strides kept where they can be."""
    if isinstance(value, Tensor):
        return value.detach().to(device, copy=True)
    return (
        type(value)(copied(x, device) for x in value) if isinstance(value, tuple | list) else value
    )


@pytest.mark.parametrize("name", OP_SAMPLES)
def test_answers_as_on_the_cpu(name: str) -> None:
    op = getattr(torch.ops.mtlkernels, name)
    for arguments in OP_SAMPLES[name]():
        there, here = copied(arguments, "cuda"), copied(arguments, "cpu")
        found, expected = (op(*there), there), (op(*here), here)
        answer, wanted = ([x.cpu() for x in tensors(both)] for both in (found, expected))
        if name in ARGUMENTS:
            check_same(arguments[0], tuple(answer), tuple(wanted))
            continue
        for one, other in zip(answer, wanted, strict=True):
            # A float64 sum of float32 states is as exact as those are.
            bound = {"rtol": 1e-5, "atol": 1e-5} if one.dtype == torch.float64 else {}
            torch.testing.assert_close(one, other, equal_nan=True, **bound)
