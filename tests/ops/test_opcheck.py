"""What registration with torch promises: schemas, fake kernels, autograd, and gradients."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from inputs import sample
from op_samples import (
    OP_SAMPLES,
    order_of,
)
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from mtlkernels import ops

pytestmark = pytest.mark.usefixtures("one_thread", "seeded")


def test_every_op_is_checked() -> None:
    assert OP_SAMPLES.keys() == ops.SCHEMAS.keys()


@pytest.mark.parametrize("name", OP_SAMPLES)
def test_opcheck(name: str) -> None:
    op = getattr(torch.ops.mtlkernels, name).default
    for arguments in OP_SAMPLES[name]():
        torch.library.opcheck(op, arguments)


# --------------------------------------------------------------------------------- gradients


def doubles(*shapes: tuple[int, ...]) -> list[Tensor]:
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


SHAPES = {
    "ordinary": [(2, 3), (4,), (2, 3), (4,)],
    "one_task": [(2, 3), (4,)],
    "one_element": [(), (1,), (), (1,)],
    "zero_size": [(0, 3), (4,), (0, 3), (4,)],
    "absent_in_one_task": [(2, 3), (0,), (2, 3), (4,)],
    "absent_in_both_tasks": [(2, 3), (0,), (2, 3), (0,)],
    "only_one_task_each": [(2, 3), (0,), (0,), (4,)],
}


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("check", [gradcheck, gradgradcheck])
def test_gradients_of_gram(check: Callable[..., bool], name: str) -> None:
    num_tasks = 1 if name == "one_task" else 2
    assert check(lambda *grads: ops.gram(grads, num_tasks), doubles(*SHAPES[name]))


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("check", [gradcheck, gradgradcheck])
def test_gradients_of_combine(check: Callable[..., bool], name: str) -> None:
    num_tasks = 1 if name == "one_task" else 2
    inputs = doubles((num_tasks,), *SHAPES[name])
    assert check(lambda weights, *grads: ops.combine(grads, weights), inputs)


@pytest.mark.parametrize("check", [gradcheck, gradgradcheck])
def test_gradients_where_absent_blocks_need_none(check: Callable[..., bool]) -> None:
    a, b, c = doubles((2, 3), (2, 3), (4,))
    none = torch.empty(0, dtype=torch.float64)
    weights = torch.randn(2, dtype=torch.float64, requires_grad=True)
    assert check(lambda *g: ops.gram([g[0], none, g[1], g[2]], 2), (a, b, c))
    assert check(lambda w, *g: ops.combine([g[0], none, g[1], g[2]], w), (weights, a, b, c))


def test_gradients_through_gram_and_combine_together() -> None:
    a, b = doubles((5,), (5,))

    def squared_length(a: Tensor, b: Tensor) -> Tensor:
        K = ops.gram([a, b], 2)
        return ops.combine([a, b], K.diagonal().rsqrt()).square().sum()

    assert gradcheck(squared_length, (a, b))
    assert gradgradcheck(squared_length, (a, b))


def test_gradients_keep_their_dtypes(float_dtype: torch.dtype) -> None:
    grads, num_tasks = sample("transposed", float_dtype)
    grads = [grad.detach().requires_grad_() for grad in grads]
    weights = torch.ones(num_tasks, requires_grad=True)
    (ops.combine(grads, weights).double().sum() + ops.gram(grads, num_tasks).sum()).backward()
    total = sum(grad.double().sum() for grad in grads)
    for grad in grads:
        assert grad.grad.dtype == float_dtype
        assert grad.grad.shape == grad.shape
    assert weights.grad.dtype == torch.float32
    torch.testing.assert_close(weights.grad.double().sum(), total, rtol=1e-4, atol=1e-4)


SOLVERS = {
    "pcgrad": lambda K: ops.pcgrad(K, order_of(K)),
    "cagrad": lambda K: ops.cagrad(K, 0.4),
    "avgnorm": lambda K: ops.avgnorm(K, ops.NormScale.RMS),
    "mgda": ops.mgda,
    "imgrad": lambda K: ops.imgrad(K, 0.8, ops.IMGradForm.CODE),
    "upgrad": lambda K: ops.upgrad(K, K.new_empty(0)),
    "gradvac": lambda K: ops.gradvac(K, order_of(K), torch.zeros_like(K), 0.01)[:2],
    "gradnorm": lambda K: ops.gradnorm(K, *3 * [torch.ones_like(K[0]).detach()], 1.5, 0.025)[:2],
    "simplex_descent": lambda K: ops.simplex_descent(
        K, torch.full_like(K[0], 1 / len(K)).detach(), 2, 1.0, 0.5, 0.3, 0.1, True
    )[:2],
    "fairgrad": lambda K: ops.fairgrad(K, 2.0),
    "equiangular": lambda K: ops.equiangular(K, ops.EquiangularLength.UNIT_SUM),
    "aligned": ops.aligned,
}


@pytest.mark.parametrize("solve", SOLVERS.values(), ids=SOLVERS.keys())
def test_weights_refuse_a_backward(solve: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
    K = torch.eye(3, dtype=torch.float64, requires_grad=True)
    weights, status = solve(K)
    assert not status.requires_grad
    with pytest.raises(RuntimeError, match="a method's weights are not differentiable: detach"):
        weights.sum().backward()
    with torch.no_grad():
        assert not solve(K)[0].requires_grad
