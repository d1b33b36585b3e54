"""The ops over gradient lists on a CUDA device, by whichever backend MTLKERNELS_BACKEND names.

`make gpu-check` runs the files test_gpu*.py for the native kernels and for Triton's. Where there
is no CUDA device all of them skip.
"""

from __future__ import annotations

import os

import pytest
import torch
from gpu_tools import cuda_sample, on_gpu, served
from inputs import (
    FEW,
    SAMPLES,
    check_combine,
    check_gram,
    expected_combine,
    expected_gram,
    sample,
    sample_weights,
)
from long_lists import COUNTS, TASKS, check_long_list
from wide_weights import hostile

from mtlkernels import ops, reference

pytestmark = on_gpu


def test_the_forced_backend_serves() -> None:
    forced = os.environ.get("MTLKERNELS_BACKEND")
    assert served() == forced if forced else served() in ("native", "triton")


@pytest.mark.parametrize("name", [n for n in SAMPLES if n != "segments_of_several_blocks"])
def test_numerics(name: str, float_dtype: torch.dtype) -> None:
    grads, num_tasks = cuda_sample(name, float_dtype)
    weights = sample_weights(num_tasks)
    host = [grad.cpu() for grad in grads]
    check_gram(ops.gram(grads, num_tasks).cpu(), host, num_tasks)
    check_combine(ops.combine(grads, weights.cuda()).cpu(), host, weights)


@pytest.mark.parametrize("beta", [1.0, -0.5])
@pytest.mark.parametrize("name", [*FEW, "numel_1025", "tasks_17"])
def test_combine_out(name: str, beta: float, float_dtype: torch.dtype) -> None:
    grads, num_tasks = cuda_sample(name, float_dtype)
    weights = sample_weights(num_tasks)
    out = torch.ones_like(ops.combine(grads, weights.cuda()))
    old = out.cpu()
    ops.combine_out(grads, weights.cuda(), out, beta)
    check_combine(out.cpu(), [grad.cpu() for grad in grads], weights, old, beta)


@pytest.mark.parametrize("beta", [0.0, -0.5])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", [*FEW, "numel_1025", "tasks_17"])
def test_combine_out_into_float32(name: str, beta: float, dtype: torch.dtype) -> None:
    grads, num_tasks = cuda_sample(name, dtype)
    weights = sample_weights(num_tasks)
    out = torch.ones_like(ops.combine(grads, weights.cuda()), dtype=torch.float32)
    old = out.cpu()
    ops.combine_out(grads, weights.cuda(), out, beta)
    host = [grad.cpu() for grad in grads]
    check_combine(out.cpu(), host, weights, old, beta, torch.float32)


@pytest.mark.parametrize("beta", [0.0, 1.0, -1e-50, 1e39])
@pytest.mark.parametrize("T", [1, 2, 9, 17])
def test_weights_outside_float32(T: int, beta: float, float_dtype: torch.dtype) -> None:
    host, weights = hostile(float_dtype, T)
    old = (1e-38 if beta > 1 else 1.0) * torch.ones(len(reference.combine(host, weights)))
    old = old.to(float_dtype)
    expected, scale = expected_combine(host, weights, old, beta)
    out = old.cuda()
    ops.combine_out([grad.cuda() for grad in host], weights.cuda(), out, beta)
    info = torch.finfo(float_dtype)
    bound = info.eps * expected.abs().clamp_min(info.smallest_normal) + 1e-15 * T * scale
    assert ((out.cpu().double() - expected).abs() <= bound).all()


@pytest.mark.parametrize("scale", [1e-25, 1e-19, 1e19, 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["ordinary", "tasks_13"])
def test_squares_outside_float32(name: str, scale: float, dtype: torch.dtype) -> None:
    grads, num_tasks = sample(name, torch.float64)
    grads = [(scale * grad).to(dtype) for grad in grads]
    expected = expected_gram(grads, num_tasks)
    norms = expected.diagonal().sqrt()
    K = ops.gram([grad.cuda() for grad in grads], num_tasks).cpu()
    assert ((K - expected).abs() <= 1e-6 * torch.outer(norms, norms)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_denormals_count(dtype: torch.dtype) -> None:
    steps = torch.arange(1, 60) / 64 * torch.finfo(dtype).smallest_normal
    host = [steps.to(dtype), (-2 * steps).flip(0).to(dtype)]
    grads = [grad.cuda() for grad in host]
    K = ops.gram(grads, 2).cpu()
    torch.testing.assert_close(K, expected_gram(host, 2), rtol=1e-6, atol=0)
    expected = (host[0].double() + host[1].double()).to(dtype)
    assert torch.equal(ops.combine(grads, torch.ones(2).cuda())[:59].cpu(), expected)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_diagonal_names_the_task_with_nan(bad: float, float_dtype: torch.dtype) -> None:
    grads = [torch.randn(5000, device="cuda").to(float_dtype) for _ in range(3)]
    grads[1][700] = bad
    assert ops.gram(grads, 3).diagonal().isfinite().tolist() == [True, False, True]
    assert not ops.combine(grads, torch.ones(3, device="cuda"))[700].isfinite()


@pytest.mark.parametrize("name", [*FEW, "numel_1025", "tasks_17"])
@pytest.mark.parametrize("leak", [0.0, 0.25])
def test_graddrop(name: str, leak: float, float_dtype: torch.dtype) -> None:
    grads, num_tasks = cuda_sample(name, float_dtype)
    numbers = (torch.tensor(-(10**12) - 7), torch.tensor((3 << 40) + 5))
    numbers = (*numbers, torch.full((num_tasks,), leak, dtype=torch.float64))
    found = ops.graddrop(grads, num_tasks, *(x.cuda() for x in numbers)).cpu()
    expected = reference.graddrop([grad.cpu() for grad in grads], num_tasks, *numbers)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", [*FEW, "numel_1025", "tasks_17"])
def test_other_row_ops(name: str, float_dtype: torch.dtype) -> None:
    grads, T = cuda_sample(name, float_dtype)
    host = [grad.cpu() for grad in grads]
    trim = (T - 1) // 2
    found, expected = ops.trimmed_mean(grads, T, trim), reference.trimmed_mean(host, T, trim)
    torch.testing.assert_close(found.cpu(), expected)
    wide = torch.promote_types(float_dtype, torch.float32)
    scale, rate = torch.linspace(0.5, 2, T).double(), torch.tensor(0.3).double()
    states = torch.zeros(2, T, len(expected), dtype=wide)
    tracked, grown = states.clone().cuda()
    K = ops.track_gram(grads, T, scale.cuda(), rate.cuda(), tracked)
    torch.testing.assert_close(K.cpu(), reference.track_gram(host, T, scale, rate, states[0]),
                               rtol=1e-5, atol=1e-5)  # fmt: skip
    e = ops.excess(grads, T, 1e-7, grown)
    torch.testing.assert_close(e.cpu(), reference.excess(host, T, 1e-7, states[1]),
                               rtol=1e-5, atol=1e-5)  # fmt: skip
    torch.testing.assert_close(torch.stack([tracked, grown]).cpu(), states)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_state_keeps_what_is_finite(bad: float) -> None:
    grads = [torch.ones(5000, device="cuda") for _ in range(3)]
    grads[1][700] = bad
    states = torch.ones(2, 3, ops.flat_offsets([5000])[-1], device="cuda")
    ones = torch.ones(3, dtype=torch.float64, device="cuda")
    K = ops.track_gram(grads, 3, ones, 0.5 * ones[0], states[0])
    assert K.isnan().tolist() == [[i == 1 or j == 1 for j in range(3)] for i in range(3)]
    assert ops.excess(grads, 3, 1e-7, states[1]).isnan().tolist() == [False, True, False]
    assert states.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("T", TASKS)
@pytest.mark.parametrize("count", COUNTS)
def test_long_lists(count: int, T: int, dtype: torch.dtype) -> None:
    check_long_list(count, T, dtype, "cuda")


def test_more_than_two_to_the_31_elements() -> None:
    n = 2**31 + 17
    if torch.cuda.mem_get_info()[0] < 3 * 2 * n:
        pytest.skip("not enough memory for 2 bfloat16 tensors of 2^31 elements")
    grad = torch.zeros(n, dtype=torch.bfloat16, device="cuda")
    grad[0], grad[-1] = 3, 4
    assert ops.gram([grad], 1).item() == 25
    out = ops.combine([grad], torch.full((1,), 2.0, device="cuda"))
    assert out.shape == (2**31 + 32,)
    assert out[[0, n - 1, n]].tolist() == [6, 8, 0]
