"""gram, combine and combine_out against float64, for every sample input and dtype."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from inputs import (
    FEW,
    SAMPLES,
    check_combine,
    check_gram,
    expected_combine,
    expected_gram,
    places,
    rows_of,
    sample,
    sample_weights,
)
from torch import Tensor

import mtlkernels
from mtlkernels import ops, reference

pytestmark = pytest.mark.usefixtures("one_thread", "seeded")

NATIVE = mtlkernels.backends()["cpu"]["gram"]["serves"] == "native"


def numels(grads: list[Tensor], num_tasks: int) -> list[int]:
    return [matrix.shape[1] for matrix in rows_of(grads, num_tasks, torch.float64)]


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("name", SAMPLES)
def test_numerics(name: str, float_dtype: torch.dtype) -> None:
    grads, num_tasks = sample(name, float_dtype)
    weights = sample_weights(num_tasks)
    before = [grad.clone() for grad in grads]
    check_gram(ops.gram(grads, num_tasks), grads, num_tasks)
    out = ops.combine(grads, weights)
    check_combine(out, grads, weights)
    assert len(out) == ops.flat_offsets(numels(grads, num_tasks))[-1]
    assert all(map(torch.equal, grads, before))


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("beta", [0.0, 1.0, -0.5])
@pytest.mark.parametrize("name", [*FEW, "numel_1025", "tasks_9", "tasks_17", "several_segments"])
def test_combine_out(name: str, beta: float, float_dtype: torch.dtype) -> None:
    grads, num_tasks = sample(name, float_dtype)
    weights = sample_weights(num_tasks)
    length = len(ops.combine(grads, weights))
    old = torch.randn(length, generator=torch.Generator().manual_seed(2)).to(float_dtype)
    out = old.clone()
    address = out.data_ptr()
    ops.combine_out(grads, weights, out, beta)
    check_combine(out, grads, weights, old, beta)
    assert out.data_ptr() == address


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("beta", [0.0, 1.0, -0.5])
@pytest.mark.parametrize("name", [*FEW, "numel_1025", "tasks_9", "tasks_17", "several_segments"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_combine_out_into_float32(name: str, beta: float, dtype: torch.dtype) -> None:
    grads, num_tasks = sample(name, dtype)
    weights = sample_weights(num_tasks)
    length = len(ops.combine(grads, weights))
    old = torch.randn(length, generator=torch.Generator().manual_seed(2))
    out = old.clone()
    ops.combine_out(grads, weights, out, beta)
    check_combine(out, grads, weights, old, beta, torch.float32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_float32_keeps_what_16_bits_lose(dtype: torch.dtype) -> None:
    grads = [torch.ones(2000, dtype=dtype), torch.full((2000,), 2.0**-20, dtype=dtype)]
    out = torch.full((2000,), torch.nan)
    ops.combine_out(grads, torch.ones(2), out)
    assert (out == 1 + 2.0**-20).all()
    ops.combine_out(grads[1:], torch.full((1,), 2.0**-3), out, 1.0)
    assert (out == 1 + 2.0**-20 + 2.0**-23).all()


def test_combine_out_with_beta_zero_does_not_read(float_dtype: torch.dtype) -> None:
    grads, num_tasks = sample("absent_in_some_tasks", float_dtype)
    weights = sample_weights(num_tasks)
    expected = ops.combine(grads, weights)
    out = torch.full_like(expected, torch.nan)
    ops.combine_out(grads, weights, out)
    assert torch.equal(out, expected)


def test_combine_out_tells_autograd_that_it_wrote() -> None:
    out = torch.zeros(16)
    kept = (out * torch.ones(16, requires_grad=True)).sum()
    with torch.no_grad():
        ops.combine_out([torch.ones(3)], torch.ones(1), out)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        kept.backward()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("requires_grad", [False, True])
def test_modes_make_no_difference(mode: Callable, requires_grad: bool) -> None:
    grads, num_tasks = sample("absent_in_some_tasks", torch.float32)
    weights = sample_weights(num_tasks)
    K, out = ops.gram(grads, num_tasks), ops.combine(grads, weights)
    recorded = requires_grad and mode is torch.enable_grad
    grads = [grad.requires_grad_(requires_grad) for grad in grads]
    with mode():
        again = ops.gram(grads, num_tasks), ops.combine(grads, weights)
    assert torch.equal(again[0], K)
    assert torch.equal(again[1], out)
    assert [tensor.requires_grad for tensor in again] == [recorded, recorded]


def test_combine_out_zeroes_padding_whatever_it_held() -> None:
    out = torch.full((32,), torch.nan)
    out[:5] = 1
    out[16:19] = 1
    ops.combine_out([torch.ones(5), torch.ones(3)], torch.tensor([2.0]), out, 1.0)
    assert out.tolist() == [3.0] * 5 + [0.0] * 11 + [3.0] * 3 + [0.0] * 13


@pytest.mark.usefixtures("poisoned")
@pytest.mark.skipif(not NATIVE, reason="the reference allocates in Python and with zeros")
def test_poison_reaches_memory_that_cpp_allocates() -> None:
    x, one = torch.randn(3), torch.ones(1)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        ops.gram([x], 1)
        ops.combine([x], one)
    calls = [event.name for event in profile.events()]
    assert calls.count("aten::new_empty") == calls.count("aten::fill_") == 2


def test_flat_offsets() -> None:
    assert ops.flat_offsets([]) == [0]
    assert ops.flat_offsets([1, 0, 16, 17, 2**40 + 1]) == [0, 16, 16, 32, 64, 2**40 + 80]


@pytest.mark.parametrize("name", ["ordinary", *FEW, "tasks_40", "many_tasks", "several_segments"])
def test_native_and_reference_agree(name: str, float_dtype: torch.dtype) -> None:
    grads, num_tasks = sample(name, float_dtype)
    weights = sample_weights(num_tasks)
    wide = torch.float64 if float_dtype == torch.float64 else torch.float32
    K, plain = ops.gram(grads, num_tasks), reference.gram(grads, num_tasks)
    norms = plain.diagonal().sqrt()
    assert ((K - plain).abs() <= reference.GRAM_NOISE * torch.outer(norms, norms)).all()
    out, plain = ops.combine(grads, weights), reference.combine(grads, weights)
    _, scale = expected_combine(grads, weights)
    # Accumulations differ by what a fused multiply-add does not round; each rounds once at the end.
    steps = num_tasks * torch.finfo(wide).eps + torch.finfo(float_dtype).eps
    assert ((out.double() - plain.double()).abs() <= steps * scale).all()


@pytest.mark.parametrize("name", SAMPLES)
def test_reference_numerics(name: str) -> None:
    grads, num_tasks = sample(name, torch.float32)
    weights = sample_weights(num_tasks)
    check_gram(reference.gram(grads, num_tasks), grads, num_tasks)
    check_combine(reference.combine(grads, weights), grads, weights)


@pytest.mark.parametrize("weights_dtype", [torch.float32, torch.float64])
def test_weights_dtype_and_stride(weights_dtype: torch.dtype, float_dtype: torch.dtype) -> None:
    grads, num_tasks = sample("ordinary", float_dtype)
    weights = torch.randn(num_tasks, 2, dtype=weights_dtype)[:, 1]
    check_combine(ops.combine(grads, weights), grads, weights)


@pytest.mark.parametrize("scale", [1e-25, 1e-19, 1e-10, 1e10, 1e19, 1e30])
@pytest.mark.parametrize("name", ["ordinary", "tasks_5", "tasks_13", "numel_4097"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gram_where_squares_leave_float32(name: str, scale: float, dtype: torch.dtype) -> None:
    grads, num_tasks = sample(name, torch.float64)
    grads = [(scale * grad).to(dtype) for grad in grads]
    expected = expected_gram(grads, num_tasks)
    norms = expected.diagonal().sqrt()
    error = (ops.gram(grads, num_tasks) - expected).abs()
    assert (error <= reference.GRAM_NOISE * torch.outer(norms, norms)).all()


def test_gram_of_tasks_of_very_different_scale() -> None:
    grads = [scale * torch.randn(3000) for scale in (1e-25, 1e-12, 1.0, 1e18)]
    expected = expected_gram(grads, 4)
    norms = expected.diagonal().sqrt()
    limit = reference.GRAM_NOISE * torch.outer(norms, norms)
    assert ((ops.gram(grads, 4) - expected).abs() <= limit).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_denormals_count(dtype: torch.dtype) -> None:
    info = torch.finfo(dtype)
    steps = torch.arange(1, 60) / 64 * info.smallest_normal
    grads = [steps.to(dtype), (-2 * steps).flip(0).to(dtype)]
    assert (grads[0] > 0).all()
    torch.testing.assert_close(ops.gram(grads, 2), expected_gram(grads, 2), rtol=1e-14, atol=0)
    out = ops.combine(grads, torch.ones(2))
    expected = (grads[0].double() + grads[1].double()).to(dtype)
    assert torch.equal(out[:59], expected)
    assert expected.count_nonzero() > 50


@pytest.mark.parametrize("num_tasks", [1, 3, 8, 9])
@pytest.mark.parametrize("numel", [1, 31, 33, 64, 1000])
def test_bfloat16_of_any_pattern_comes_through(numel: int, num_tasks: int) -> None:
    """NaN, infinities and denormals among them, misaligned."""
    generator = torch.Generator().manual_seed(numel)
    bits = torch.randint(-(2**15), 2**15, (numel + 1,), generator=generator)
    row = bits.to(torch.int16).view(torch.bfloat16)[1:]
    for at in range(num_tasks):
        rows = [torch.ones(numel, dtype=torch.bfloat16) for _ in range(num_tasks)]
        rows[at] = row
        weights = torch.zeros(num_tasks).index_fill(0, torch.tensor(at), 1.0)
        out = ops.combine(rows, weights)[:numel]
        expected = row + torch.zeros_like(row)  # the sum with zeros has no negative zero
        assert torch.equal(out.isnan(), row.isnan())
        same = out.view(torch.int16) == expected.view(torch.int16)
        assert (same | row.isnan()).all()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("num_tasks", [1, 3, 9])
@pytest.mark.parametrize("at", [0, 15, 700, 4999])
def test_diagonal_names_the_task_with_nan(
    bad: float, num_tasks: int, at: int, float_dtype: torch.dtype
) -> None:
    grads = [torch.randn(5000).to(float_dtype) for _ in range(num_tasks)]
    which = num_tasks // 2
    grads[which][at] = bad
    finite = ops.gram(grads, num_tasks).diagonal().isfinite()
    assert finite.tolist() == [t != which for t in range(num_tasks)]
    assert not ops.combine(grads, torch.ones(num_tasks))[at].isfinite()


def test_negated_views_are_resolved() -> None:
    x = torch.complex(torch.randn(40), torch.randn(40)).conj().imag
    assert x.is_neg()
    check_gram(ops.gram([x, torch.ones(40)], 2), [x, torch.ones(40)], 2)
    check_combine(ops.combine([x], torch.ones(1)), [x], torch.ones(1))


def test_padding_places() -> None:
    grads, num_tasks = sample("absent_in_all_tasks", torch.float32)
    out = ops.combine(grads, sample_weights(num_tasks))
    matrices = rows_of(grads, num_tasks, torch.float32)
    starts, length = places(matrices)
    assert [*starts, length] == ops.flat_offsets(numels(grads, num_tasks)) == [0, 16, 16, 624, 624]
    assert not out[5:16].any()
    assert not out[616:].any()


A, B = torch.ones(2, 3), torch.ones(4)
ONE = torch.ones(1)
COMBINE: dict[str, Callable[[list[Tensor], Tensor], object]] = {
    "combine": ops.combine,
    "combine_out": lambda g, w: ops.combine_out(g, w, torch.ones(16)),
}


@pytest.mark.parametrize(
    ("grads", "num_tasks", "message"),
    [
        ([A, B, A], 2, r"task-major list of num_tasks \* P gradients, got 3 gradients for 2"),
        ([A], 2, "got 1 gradients for 2 tasks"),
        ([A], 0, "got 1 gradients for 0 tasks"),
        ([A], -1, "got 1 gradients for -1 tasks"),
        ([A, B, A, B.double()], 2, "task 1 for parameter 1 has another dtype"),
        ([A, B, A, B.int()], 2, "task 1 for parameter 1 has another dtype"),
        ([A.int(), A.int()], 2, "must be float32, float64, bfloat16 or float16"),
        ([A.bool()], 1, "must be float32, float64, bfloat16 or float16"),
        ([A.cfloat()], 1, "must be float32, float64, bfloat16 or float16"),
        ([A, B, A, B[:3]], 2, "task 1 for parameter 1 has (another )?shape"),
        ([A, B, A.t(), B], 2, "task 1 for parameter 0 has (another )?shape"),
        ([torch.ones(0), B, A, B, A[:1], B], 3, "task 2 for parameter 0 has (another )?shape"),
    ],
)
def test_lists_that_do_not_fit(grads: list[Tensor], num_tasks: int, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        ops.gram(grads, num_tasks)
    for combine in COMBINE.values() if num_tasks > 0 else ():
        with pytest.raises(RuntimeError, match=message):
            combine(grads, torch.ones(num_tasks))


def test_empty_list() -> None:
    with pytest.raises(ValueError, match="the gradient list is empty"):
        ops.gram([], 1)
    for combine in COMBINE.values():
        with pytest.raises(ValueError, match="the gradient list is empty"):
            combine([], ONE)


@pytest.mark.parametrize("combine", COMBINE.values(), ids=COMBINE.keys())
@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (torch.ones(3), "got 4 gradients for 3 tasks"),
        (torch.ones(2, 1), "weights must be a vector with one entry a task"),
        (torch.ones(()), "weights must be a vector with one entry a task"),
        (torch.ones(0), "weights must be a vector with one entry a task"),
        (torch.ones(2, dtype=torch.int64), "weights must be float64 or float32"),
        (torch.ones(2).bfloat16(), "weights must be float64 or float32"),
    ],
)
def test_weights_that_do_not_fit(combine: Callable, weights: Tensor, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        combine([A, B, A, B], weights)


@pytest.mark.parametrize(
    ("out", "message"),
    [
        (torch.ones(15), "out must be a contiguous vector of 16 elements, as combine returns it"),
        (torch.ones(4, 4), "out must be a contiguous vector of 16 elements"),
        (torch.ones(32)[::2], "out must be a contiguous vector of 16 elements"),
        (torch.ones(1).expand(16), "out must be a contiguous vector of 16 elements"),
        (torch.ones(16).double(), "out must have the gradients' device and dtype, or float32 for"),
        (torch.ones(16).bfloat16(), "out must have the gradients' device and dtype"),
    ],
)
def test_out_that_does_not_fit(out: Tensor, message: str) -> None:
    before = out.clone()
    with pytest.raises(RuntimeError, match=message):
        ops.combine_out([A], ONE, out)
    assert torch.equal(out, before)


@pytest.mark.parametrize(
    ("grads_dtype", "out_dtype"),
    [
        (torch.float64, torch.float32),
        (torch.bfloat16, torch.float16),
        (torch.float16, torch.float64),
    ],
)
def test_out_of_a_dtype_that_is_not_written(
    grads_dtype: torch.dtype, out_dtype: torch.dtype
) -> None:
    message = "out must have the gradients' device and dtype, or float32 for bfloat16 or float16"
    for combine_out in (ops.combine_out, reference.combine_out):
        with pytest.raises(RuntimeError, match=message):
            combine_out([A.to(grads_dtype)], ONE, torch.ones(16, dtype=out_dtype), 0.0)


@pytest.mark.parametrize("which", [0, 1, 2])
def test_combine_out_is_not_differentiable(which: int) -> None:
    tensors = [torch.ones(4), torch.ones(1), torch.ones(16)]
    tensors[which].requires_grad_()
    grad, weights, out = tensors
    with pytest.raises(RuntimeError, match="combine_out is not differentiable: use combine"):
        ops.combine_out([grad], weights, out)
    with torch.no_grad():
        ops.combine_out([grad], weights, out)
