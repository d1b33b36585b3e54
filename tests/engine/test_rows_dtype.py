"""Rows kept in 16 bits: half the memory, sums and .grad in float32."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from trunk_and_heads import Model

import mtlkernels
from mtlkernels import CAGrad, MTLOptimizer, PCGrad, Sum

HALVES = [torch.bfloat16, torch.float16]


def rows_of(model: Model, x: Tensor) -> list[tuple[Tensor, ...]]:
    losses = list(model(x).values())
    return [
        torch.autograd.grad(loss, list(model.trunk.parameters()), retain_graph=True)
        for loss in losses
    ]


@pytest.mark.parametrize("collect", ["loop", "batched"])
@pytest.mark.parametrize("dtype", HALVES)
def test_the_direction_is_the_float32_sum_of_the_rounded_rows(dtype, collect) -> None:
    torch.manual_seed(0)
    model, x = Model(), torch.randn(6, 5)
    rows = [[g.to(dtype).double() for g in row] for row in rows_of(model, x)]
    options = {"collect": collect, "rows_dtype": dtype}
    optimizer = MTLOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), CAGrad(), **options)
    for calls in (1, 2):  # the second call adds, in place
        report = optimizer.backward(model(x))
        for p, param in enumerate(model.trunk.parameters()):
            want = calls * sum(w * row[p] for w, row in zip(report.weights, rows, strict=True))
            assert param.grad.dtype == torch.float32
            # one rounding to float32 a call, none to 16 bits
            torch.testing.assert_close(param.grad.double(), want, rtol=1e-6, atol=1e-7)
    flat = torch.cat([torch.cat([g.reshape(-1) for g in row])[None] for row in rows])
    torch.testing.assert_close(report.gram, flat @ flat.T, rtol=1e-5, atol=1e-8)


def test_rows_of_other_parameters_stay_as_they_are() -> None:
    torch.manual_seed(0)
    first, second = nn.Linear(5, 4).double(), nn.Linear(4, 4).bfloat16()
    params = [*first.parameters(), *second.parameters()]
    z = second(torch.tanh(first(torch.randn(6, 5, dtype=torch.float64))).bfloat16()).double()
    losses = [z[:, t].square().mean() for t in range(3)]
    want = torch.autograd.grad(sum(losses), params, retain_graph=True)
    mtlkernels.backward(losses, params, Sum(), rows_dtype=torch.bfloat16)
    for param, grad in zip(params[:2], want, strict=False):
        torch.testing.assert_close(param.grad, grad, rtol=1e-2, atol=1e-3)
        assert param.grad.dtype == torch.float64
    assert second.weight.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", HALVES)
def test_what_is_kept_is_in_that_dtype(dtype, monkeypatch) -> None:
    seen = []
    gram = mtlkernels.ops.gram
    monkeypatch.setattr(
        "mtlkernels.ops.gram", lambda g, T: (seen.extend(x.dtype for x in g), gram(g, T))[1]
    )
    model = Model()
    optimizer = MTLOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1), PCGrad(), rows_dtype=dtype
    )
    optimizer.backward(model(torch.randn(6, 5)))
    assert set(seen) == {dtype}
    with pytest.raises(ValueError, match="16 bits would round each time"):
        optimizer.backward(model(torch.randn(6, 5)), accumulate=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int8, "bfloat16"])
def test_other_dtypes_are_refused(dtype) -> None:
    model = Model()
    with pytest.raises(ValueError, match=r"choose torch\.bfloat16"):
        MTLOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), PCGrad(), rows_dtype=dtype)
