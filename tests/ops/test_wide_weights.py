"""Weights that float32 cannot hold, on gradients that make their product an ordinary number."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from inputs import check_combine, expected_combine
from wide_weights import hostile

import mtlkernels
from mtlkernels import AvgNorm, CAGrad, GramMethod, NashMTL, PCGrad, ops, reference

pytestmark = pytest.mark.usefixtures("one_thread", "seeded")

OUT: dict[str, Callable] = {"ops": ops.combine_out, "reference": reference.combine_out}


@pytest.mark.parametrize("combine_out", OUT.values(), ids=OUT)
@pytest.mark.parametrize("beta", [0.0, 1.0, -1e-50, 1e39])
@pytest.mark.parametrize("T", [1, 2, 9, 17])
def test_products_count(combine_out: Callable, T: int, beta: float, float_dtype) -> None:
    grads, weights = hostile(float_dtype, T)
    length = len(ops.combine(grads, weights))
    size = 1.0 if beta <= 1 else 0.0 if float_dtype == torch.float16 else 1e-38
    old = (size * torch.randn(length, dtype=torch.float64)).to(float_dtype)
    expected, scale = expected_combine(grads, weights, old, beta)
    out = old.clone() if beta else torch.full_like(old, torch.nan)
    combine_out(grads, weights, out, beta)
    info = torch.finfo(float_dtype)
    bound = info.eps * expected.abs().clamp_min(info.smallest_normal) + 1e-15 * T * scale
    assert ((out.double() - expected).abs() <= bound).all()


@pytest.mark.parametrize("combine_out", OUT.values(), ids=OUT)
@pytest.mark.parametrize("beta", [0.0, 1.0, 1e39])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_products_count_in_float32(combine_out: Callable, beta: float, dtype: torch.dtype) -> None:
    grads, weights = hostile(dtype, 9)
    old = (1e-38 if beta > 1 else 1.0) * torch.randn(len(ops.combine(grads, weights)))
    expected, scale = expected_combine(grads, weights, old, beta)
    out = old.clone() if beta else torch.full_like(old, torch.nan)
    combine_out(grads, weights, out, beta)
    info = torch.finfo(out.dtype)
    bound = info.eps * expected.abs().clamp_min(info.smallest_normal) + 1e-15 * 9 * scale
    assert ((out.double() - expected).abs() <= bound).all()


@pytest.mark.parametrize("combine_out", OUT.values(), ids=OUT)
@pytest.mark.parametrize("weight", [1e39, -1e39, 1e-50, -1e-50])
def test_each_weight_alone(combine_out: Callable, weight: float) -> None:
    grads = [torch.full((5,), 3.0), torch.full((5,), 1 / weight if abs(weight) > 1 else 1e30)]
    out = torch.empty(16)
    combine_out(grads, torch.tensor([2.0, weight], dtype=torch.float64), out, 0.0)
    expected = (6.0 + weight * grads[1].double()).float()
    assert torch.equal(out[:5], expected)


@pytest.mark.parametrize("combine_out", OUT.values(), ids=OUT)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("T", [2, 9])
@pytest.mark.parametrize("other", [1.0, 1e39])
def test_weights_that_are_not_finite_show(
    combine_out: Callable, bad: float, T: int, other: float, float_dtype: torch.dtype
) -> None:
    weights = torch.full((T,), other, dtype=torch.float64)
    weights[T // 2] = bad
    grads = [torch.ones(40, dtype=float_dtype) for _ in range(T)]
    out = torch.zeros(48, dtype=float_dtype)
    combine_out(grads, weights, out, 0.0)
    expected = torch.full((40,), bad, dtype=float_dtype)
    assert torch.equal(out[:40].nan_to_num(7.0, 8.0, 9.0), expected.nan_to_num(7.0, 8.0, 9.0))


@pytest.mark.skipif(
    mtlkernels.backends()["cpu"]["combine"]["serves"] == "reference", reason="adds up in float64"
)
def test_ordinary_weights_are_added_up_in_float32() -> None:
    grads = [torch.ones(1), torch.full((1,), 2.0**-25), -torch.ones(1)]
    assert ops.combine(grads, torch.ones(3, dtype=torch.float64))[0] == 0
    wide = torch.tensor([1.0, 1.0, 1.0, 1e-31], dtype=torch.float64)
    assert ops.combine([*grads, torch.zeros(1)], wide)[0] == 2.0**-25


def test_a_direction_stored_past_the_cache() -> None:
    grads = [1e-40 * torch.randn((8 << 18) + 37), torch.randn((8 << 18) + 37)]
    weights = torch.tensor([1e39, 0.5], dtype=torch.float64)
    check_wide = ops.combine(grads, weights)[: len(grads[0])]
    expected = 1e39 * grads[0].double() + 0.5 * grads[1].double()
    assert torch.equal(check_wide, expected.float())
    plain = torch.tensor([2.0, 0.5], dtype=torch.float64)
    check_combine(ops.combine(grads, plain), grads, plain)


def test_gradients_of_wide_weights() -> None:
    a = (1e-40 * torch.randn(20)).requires_grad_()
    b = torch.randn(20).requires_grad_()
    weights = torch.tensor([1e39, 1e-50], dtype=torch.float64, requires_grad=True)
    cotangent = 1e-20 * torch.randn(32)
    ops.combine([a, b], weights).backward(cotangent)
    g = cotangent[:20].double()
    assert torch.equal(a.grad, (1e39 * g).float())
    assert torch.equal(b.grad, (1e-50 * g).float())
    expected = torch.stack([a.detach().double() @ g, b.detach().double() @ g])
    torch.testing.assert_close(weights.grad, expected, rtol=1e-5, atol=0)


METHODS = [AvgNorm(), AvgNorm("min"), AvgNorm("max"), PCGrad(), CAGrad(), NashMTL()]


@pytest.mark.parametrize("method", METHODS, ids=repr)
@pytest.mark.parametrize("size", [1e-40, 1e-30, 1e15])
def test_methods_on_a_task_of_another_scale(method: GramMethod, size: float) -> None:
    grads = [size * torch.randn(600), torch.randn(600)]
    (direction,), report = mtlkernels.aggregate([[g] for g in grads], method)
    G = torch.stack(grads).double()
    weights = method(G @ G.T)
    expected = G.T @ weights
    tolerance = 2e-6 * float((weights.abs() * G.norm(dim=1)).sum())
    assert direction.isfinite().all()
    assert float((direction.double() - expected).norm()) <= tolerance
    plain = reference.combine(grads, report.weights)[:600].double()
    assert float((plain - expected).norm()) <= tolerance
