"""Every solver on a CUDA device: the CPU's answers, and flags where a K is no Gram matrix."""

from __future__ import annotations

import pytest
import torch
from certificates import cagrad_certificate
from gpu_tools import on_gpu
from hard_grams import KINDS, hard_gram
from solver_cases import ARGUMENTS, INVALID, TWO_BATCHES, check_same, invalid_gram, solve

import mtlkernels
from mtlkernels import ops, reference

pytestmark = on_gpu


def skip_unless_a_kernel_serves(name: str) -> None:
    if mtlkernels.backends()["cuda"][name]["serves"] == "reference":
        pytest.skip(f"no kernel of this backend for {name}: plain torch serves it")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("T", [1, 2, 5, 19, 64])
def test_cagrad(kind: str, T: int) -> None:
    K = hard_gram(kind, T, 3)
    weights, status = ops.cagrad(K.cuda(), 0.4)
    assert status.tolist() == reference.cagrad(K, 0.4, 0, False)[1].tolist()
    assert cagrad_certificate(K, weights.cpu(), 0.4) <= 1e-9


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("T", [1, 2, 3, 8, 19, 64])
@pytest.mark.parametrize("name", ARGUMENTS)
def test_answers_as_on_the_cpu(name: str, T: int, kind: str) -> None:
    skip_unless_a_kernel_serves(name)
    K = hard_gram(kind, T, 3)
    arguments = ARGUMENTS[name](K)
    check_same(K, solve(name, K, "cuda", arguments), solve(name, K, "cpu", arguments))


@pytest.mark.parametrize("entry", INVALID)
@pytest.mark.parametrize("name", [name for name in ARGUMENTS if name not in TWO_BATCHES])
def test_what_is_no_gram_matrix_is_nan_and_flagged(name: str, entry: tuple[int, int]) -> None:
    skip_unless_a_kernel_serves(name)
    K, flags = invalid_gram(entry)
    weights, status, *_ = solve(name, K, "cuda", ARGUMENTS[name](torch.eye(3).double()))
    assert weights.isnan().all()
    assert status.tolist() == flags
