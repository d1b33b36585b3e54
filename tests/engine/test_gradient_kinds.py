"""Complex and sparse gradients, and .grad of another dtype than its parameter's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mtlkernels
from mtlkernels import SI, UW, FixedWeights, GradDrop, MTLOptimizer, PCGrad, Sum

pytestmark = pytest.mark.usefixtures("one_thread")

# ----------------------------------------------------------------------------- complex and sparse


class Mixed(nn.Module):
    """A frozen, a real, a complex and a sparse parameter, in this order."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)
        self.real = nn.Parameter(torch.randn(3, generator=generator))
        self.phase = nn.Parameter(torch.randn(3, dtype=torch.complex64, generator=generator))
        self.words = nn.Embedding(5, 3, sparse=True)
        nn.init.normal_(self.words.weight, generator=generator)

    def losses(self, *kinds: str) -> list[Tensor]:
        found = self.real * self.frozen
        if "complex" in kinds:
            found = found + (self.real * self.phase).abs()
        more = found * 1.0
        if "sparse" in kinds:
            found = found + self.words(torch.tensor([1, 2])).sum(0)
            more = more * self.words(torch.tensor([2, 3])).sum(0)
        return [found.square().sum() + 1, more.square().mean() + 2]


KINDS = [("complex",), ("sparse",), ("complex", "sparse")]


@pytest.mark.parametrize("kinds", KINDS, ids="-".join)
@pytest.mark.parametrize("make", [lambda: UW(2), SI], ids=["UW", "SI"])
def test_a_loss_method_takes_every_kind_of_gradient(make: Any, kinds: tuple[str, ...]) -> None:
    ours, plain = Mixed(), Mixed()
    method, twin = make(), make()
    for _ in range(2):  # the second adds to .grad
        mtlkernels.backward(ours.losses(*kinds), list(ours.parameters()), method)
        twin(torch.stack(plain.losses(*kinds)).double()).backward()
    for (name, a), b in zip(ours.named_parameters(), plain.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None), name
        if a.grad is not None:
            assert a.grad.layout == b.grad.layout, name
            torch.testing.assert_close(a.grad.to_dense(), b.grad.to_dense())


def test_a_loss_method_trains_an_optimizer_of_sparse_gradients() -> None:
    words = [nn.Embedding(5, 3, sparse=True) for _ in range(2)]
    words[1].load_state_dict(words[0].state_dict())
    ours = MTLOptimizer(torch.optim.SparseAdam(words[0].parameters()), SI())
    plain, method = torch.optim.SparseAdam(words[1].parameters()), SI()
    for step in range(3):
        for optimizer, model in ((ours, words[0]), (plain, words[1])):
            optimizer.zero_grad()
            picked = model(torch.tensor([step, 4]))
            losses = [picked.square().mean() + 1, picked.exp().mean()]
            if optimizer is ours:
                ours.backward(losses)
            else:
                method(torch.stack(losses).double()).backward()
            optimizer.step()
    torch.testing.assert_close(words[0].weight, words[1].weight)


@pytest.mark.parametrize("options", [{}, {"apply": "backward"}], ids=["rows", "weighted"])
@pytest.mark.parametrize("method", [PCGrad(), FixedWeights([1.0, 2.0]), GradDrop()], ids=repr)
def test_others_refuse_and_say_which_parameter_and_what_to_do(method: Any, options: Any) -> None:
    if options and isinstance(method, GradDrop):
        options = {}
    for kind, position, told in (
        ("complex", 2, r"hold a real parameter of shape \(3, 2\) and use torch.view_as_complex of"),
        ("sparse", 3, r"use dense gradients \(Embedding\(sparse=False\)\)"),
    ):
        model = Mixed()
        params = [*model.parameters()]
        sentence = rf"for parameter {position} is {kind}: {told}.*, or choose a loss method"
        with pytest.raises(TypeError, match=sentence):
            mtlkernels.backward(model.losses(kind), params, method, **options)
        assert all(param.grad is None for param in params)
        wrapped = MTLOptimizer(torch.optim.SGD(params, lr=0.1), method, **options)
        with pytest.raises(TypeError, match=sentence):
            wrapped.backward(model.losses(kind))


def test_accumulated_gradients_are_numbered_as_the_optimizer_has_them() -> None:
    model = Mixed()
    wrapped = MTLOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), PCGrad())
    wrapped.backward(model.losses("complex"), accumulate=True)
    with pytest.raises(TypeError, match="for parameter 2 is complex"):
        wrapped.combine()


def test_real_numbers_of_a_complex_weight_train_under_every_method() -> None:
    """What the sentence points to."""
    pairs = nn.Parameter(torch.randn(3, 2, generator=torch.Generator().manual_seed(0)))
    z = torch.view_as_complex(pairs)
    report = mtlkernels.backward([z.abs().sum(), (z * z).abs().sum()], [pairs], PCGrad())
    assert pairs.grad.isfinite().all()
    assert (report.gram > 0).all()


# ---------------------------------------------------------------------------------- .grad's dtype

DTYPES = [
    (torch.float32, torch.bfloat16),
    (torch.float32, torch.float16),
    (torch.bfloat16, torch.float32),
    (torch.float16, torch.float32),
    (torch.float32, torch.float64),
    (torch.float32, None),
    (torch.bfloat16, None),
]


def three(dtype: torch.dtype, into: torch.dtype | None) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    params = [nn.Parameter(torch.rand(3, generator=generator).to(dtype)) for _ in range(3)]
    for param in params:
        param.grad_dtype = into
    return params


def two_losses(params: list[nn.Parameter]) -> list[Tensor]:
    product = params[0].float() * params[1].float()
    return [(product.sum() + params[2].float().sum()).square(), product.square().sum()]


@pytest.mark.skipif(not hasattr(torch.Tensor, "grad_dtype"), reason="this torch has no grad_dtype")
@pytest.mark.parametrize(
    ("method", "options"),
    [(Sum(), {}), (Sum(), {"apply": "backward"}), (FixedWeights([1.0, 1.0]), {})],
    ids=["rows", "weighted", "fixed"],
)
@pytest.mark.parametrize(("dtype", "into"), DTYPES, ids=str)
def test_grad_is_of_the_dtype_that_the_parameter_asks_for(
    dtype: torch.dtype, into: torch.dtype | None, method: Any, options: Any
) -> None:
    ours, plain = three(dtype, into), three(dtype, into)
    for _ in range(2):
        mtlkernels.backward(two_losses(ours), ours, method, **options)
        sum(two_losses(plain)).backward()
    for a, b in zip(ours, plain, strict=True):
        assert a.grad.dtype == b.grad.dtype
        coarse = torch.bfloat16 in (dtype, into) or torch.float16 in (dtype, into)
        tolerance = {"rtol": 2e-2, "atol": 2e-2} if coarse else {}
        torch.testing.assert_close(a.grad, b.grad, **tolerance)


@pytest.mark.skipif(not hasattr(torch.Tensor, "grad_dtype"), reason="this torch has no grad_dtype")
@pytest.mark.parametrize("method", [SI(), GradDrop(), PCGrad()], ids=repr)
@pytest.mark.parametrize(("dtype", "into"), DTYPES, ids=str)
def test_every_family_writes_that_dtype(
    dtype: torch.dtype, into: torch.dtype | None, method: Any
) -> None:
    params, plain = three(dtype, into), three(dtype, into)
    for _ in range(2):
        mtlkernels.backward(two_losses(params), params, method)
    sum(two_losses(plain)).backward()
    assert [p.grad.dtype for p in params] == [p.grad.dtype for p in plain]
