"""Which parameters a loss reaches where its graph makes that hard to tell."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import mtlkernels
from mtlkernels import AvgNorm, Sum


@pytest.fixture
def parts() -> tuple[nn.Linear, nn.ModuleList, Tensor]:
    torch.manual_seed(0)
    return nn.Linear(6, 8), nn.ModuleList(nn.Linear(8, 1) for _ in range(3)), torch.randn(16, 6)


def params_of(trunk: nn.Module, heads: nn.Module) -> list[nn.Parameter]:
    return [*trunk.parameters(), *heads.parameters()]


def test_a_stack_of_vectors_is_not_taken_for_a_stack_of_losses() -> None:
    W = nn.Parameter(torch.tensor([1.0, 2.0]))
    scales = [k * W**2 for k in (1.0, 2.0)]
    entries = torch.stack(scales).view(-1)
    mtlkernels.backward([entries[0], entries[1]], [W], Sum())
    assert W.grad is not None
    assert W.grad.tolist() == [2.0, 4.0]


def test_vectors_of_different_parameters_are_not_taken_for_losses() -> None:
    V, W = (nn.Parameter(torch.tensor([1.0, k])) for k in (2.0, 3.0))
    entries = torch.stack([V**2, W**2]).view(-1)
    with pytest.raises(ValueError, match="entries of one tensor"):
        mtlkernels.backward([entries[0], entries[1]], [V, W], Sum())
    mtlkernels.backward([entries[0], entries[1]], [V, W], Sum(), shared=[V])
    assert V.grad is not None
    assert V.grad.tolist() == [2.0, 4.0]


@pytest.mark.parametrize(
    "join",
    [
        lambda out: torch.cat(out, dim=1).pow(2).mean(dim=0),
        lambda out: torch.stack([o.pow(2).mean() for o in out]).clamp(max=10.0),
        lambda out: torch.stack([o.pow(2).mean().view(1) for o in out], dim=1).view(-1),
    ],
    ids=["cat", "clamp", "stack of vectors"],
)
def test_heads_that_a_join_hides_are_not_taken_for_shared(parts, join: Callable) -> None:
    trunk, heads, x = parts
    params = params_of(trunk, heads)
    joined = join([head(trunk(x)) for head in heads])
    with pytest.raises(ValueError, match=r"entries of one tensor.*shared="):
        mtlkernels.backward(joined, params, AvgNorm("max"))
    assert all(p.grad is None for p in params)
    report = mtlkernels.backward(joined, params, AvgNorm("max"), shared=trunk.parameters())
    z = trunk(x)
    single = [head(z).pow(2).mean() for head in heads]
    expected = mtlkernels.backward(single, params, AvgNorm("max"))
    torch.testing.assert_close(report.gram, expected.gram)


@pytest.mark.parametrize(
    "join",
    [
        lambda out: torch.cat([o.pow(2).mean().view(1) for o in out]),
        lambda out: list(torch.stack([o.pow(2).mean() for o in out]).split(1)),
    ],
    ids=["cat of losses", "split"],
)
def test_heads_of_losses_in_one_tensor_are_found(parts, join: Callable) -> None:
    trunk, heads, x = parts
    params = params_of(trunk, heads)
    report = mtlkernels.backward(join([head(trunk(x)) for head in heads]), params, AvgNorm("max"))
    grads = [param.grad.clone() for param in params]
    for param in params:
        param.grad = None
    single = [head(trunk(x)).pow(2).mean() for head in heads]
    expected = mtlkernels.backward(single, params, AvgNorm("max"))
    torch.testing.assert_close(report.gram, expected.gram)
    torch.testing.assert_close(grads, [param.grad for param in params])


def test_columns_of_one_layer_share_it(parts) -> None:
    trunk, _, x = parts
    losses = trunk(x).pow(2).mean(dim=0)
    report = mtlkernels.backward(losses, list(trunk.parameters()), Sum())
    assert (report.gram == torch.diag(report.gram.diagonal())).all()


@pytest.mark.parametrize("entrywise", [lambda p: p * 2, lambda p: p.clone(), lambda p: p + 0])
def test_a_loss_may_be_an_entrywise_function_of_a_parameter(entrywise: Callable) -> None:
    t = nn.Parameter(torch.tensor(1.0))
    mtlkernels.backward([(t - 2) ** 2, entrywise(t)], [t], Sum())
    assert t.grad is not None


def test_a_compiled_function_that_leaves_one_head_out_is_refused(parts) -> None:
    torch._dynamo.reset()
    trunk, heads, x = parts

    @torch.compile(backend="aot_eager")
    def most(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z = trunk(x).tanh()
        return heads[0](z), heads[1](z), z

    a, b, z = most(x)
    losses = [out.pow(2).mean() for out in (a, b, heads[2](z))]
    with pytest.raises(ValueError, match=r"torch.compile.*shared="):
        mtlkernels.backward(losses, params_of(trunk, heads), AvgNorm())


def test_a_compiled_trunk_with_eager_heads_needs_no_names(parts) -> None:
    torch._dynamo.reset()
    trunk, heads, x = parts
    z = torch.compile(trunk, backend="aot_eager")(x)
    params = params_of(trunk, heads)
    report = mtlkernels.backward([head(z).pow(2).mean() for head in heads], params, AvgNorm("max"))
    alone = [p.grad.clone() for p in params]
    for param in params:
        param.grad = None
    z = trunk(x)
    eager = mtlkernels.backward([head(z).pow(2).mean() for head in heads], params, AvgNorm("max"))
    torch.testing.assert_close(report.gram, eager.gram)
    torch.testing.assert_close(alone, [p.grad for p in params])


def test_frozen_members_of_shared_are_passed_over(parts) -> None:
    trunk, heads, x = parts
    trunk.bias.requires_grad_(False)
    losses = [head(trunk(x)).pow(2).mean() for head in heads]
    mtlkernels.backward(losses, params_of(trunk, heads), Sum(), shared=trunk.parameters())
    assert trunk.weight.grad is not None
    assert trunk.bias.grad is None


def test_gradients_are_tensors_of_their_own(parts) -> None:
    trunk, heads, x = parts
    params = params_of(trunk, heads)
    mtlkernels.backward([head(trunk(x)).pow(2).mean() for head in heads], params, Sum())
    kept = (torch.ones_like(params[0], requires_grad=True) * params[0].grad).sum()
    params[1].grad.zero_()
    kept.backward()
    for param in params:
        param.grad.detach_()
        param.grad.zero_()
