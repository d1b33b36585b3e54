"""Wrong input to `backward` is told in a sentence, and nothing is written."""

from __future__ import annotations

import pytest
import torch
from convolution_and_heads import images, model
from torch import Tensor, nn

import mtlkernels
from mtlkernels import GramMethod, Mean, Sum

__all__ = ["images", "model"]  # fixtures


def scalar() -> Tensor:
    return nn.Parameter(torch.ones(())) * 2


@pytest.mark.parametrize(
    ("losses", "error", "word"),
    [
        ([], ValueError, "no losses"),
        ({}, ValueError, "no losses"),
        (torch.ones(2, 2, requires_grad=True), ValueError, "1-D"),
        (torch.ones((), requires_grad=True), ValueError, "1-D"),
        ([scalar(), 1.0], TypeError, "'1' is a float"),
        ({"seg": torch.ones(3, requires_grad=True) * 2}, ValueError, "'seg' has shape"),
        ({"seg": scalar(), "depth": torch.ones(())}, ValueError, "'depth' has no graph"),
        (None, TypeError, "losses is a NoneType"),
        ([scalar()] * 2, ValueError, "'0' and '1' are the same tensor"),
        ([scalar(), scalar() * 1j], TypeError, "'1' is complex"),
    ],
    ids=[
        "none",
        "empty-dict",
        "2-D",
        "0-D",
        "float",
        "vector",
        "detached",
        "nothing",
        "twice",
        "complex",
    ],
)
def test_wrong_losses_are_told(losses, error, word: str) -> None:
    with pytest.raises(error, match=word):
        mtlkernels.backward(losses, [nn.Parameter(torch.ones(1))], Mean())


def test_a_stacked_loss_without_graph_is_told() -> None:
    p = nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match="loss 1 of the stack has no graph"):
        mtlkernels.backward(torch.stack([p.sum(), torch.ones(())]), [p], Mean())


def test_entries_of_a_vector_loss_share_what_made_it() -> None:
    p = nn.Parameter(torch.tensor([1.0, 2.0]))
    report = mtlkernels.backward(p * torch.tensor([3.0, 4.0]), [p], Sum())
    torch.testing.assert_close(report.norms(), torch.tensor([3.0, 4.0]).double())
    torch.testing.assert_close(p.grad, torch.tensor([3.0, 4.0]))


def test_wrong_parameters_are_told() -> None:
    p, q = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    losses = [p.sum(), (2 * p).sum()]
    with pytest.raises(ValueError, match="stands twice"):
        mtlkernels.backward(losses, [p, q, p], Mean())
    with pytest.raises(ValueError, match="result of an operation"):
        mtlkernels.backward(losses, [p, q * 2], Mean())
    with pytest.raises(TypeError, match="parameter 1 is a str"):
        mtlkernels.backward(losses, [p, "q"], Mean())
    with pytest.raises(ValueError, match="no parameter requires grad"):
        mtlkernels.backward(losses, [torch.ones(2)], Mean())
    with pytest.raises(ValueError, match="shared= names a parameter that is not"):
        mtlkernels.backward(losses, [p], Mean(), shared=[q])
    with pytest.raises(ValueError, match="no loss reaches any"):
        mtlkernels.backward([p.sum(), (3 * p).sum()], [p, q], Mean(), shared=[q])
    assert p.grad is None
    assert q.grad is None


def test_nothing_reached_is_told_and_nothing_written() -> None:
    p, q, r = (nn.Parameter(torch.ones(2)) for _ in range(3))
    with pytest.raises(ValueError, match=r"no loss reaches any .* no parameter is shared"):
        mtlkernels.backward([p.sum(), q.sum()], [r], Mean())
    assert all(param.grad is None for param in (p, q, r))


def test_wrong_task_gradients_are_told() -> None:
    g = torch.ones(2)
    with pytest.raises(ValueError, match="T lists of P tensors"):
        mtlkernels.aggregate([], Mean())
    with pytest.raises(ValueError, match="task 1 has 1 gradients for 2 parameters"):
        mtlkernels.aggregate([[g, g], [g]], Mean())
    with pytest.raises(ValueError, match="task 0 has a tensor"):
        mtlkernels.aggregate([g, g], Mean())
    with pytest.raises(ValueError, match="no task reaches any parameter"):
        mtlkernels.aggregate([[None], [None]], Mean())


def test_a_name_is_no_method() -> None:
    with pytest.raises(TypeError, match="method is a str"):
        mtlkernels.aggregate([[torch.ones(2)]], "pcgrad")


def test_a_method_that_returns_something_else_is_told() -> None:
    class Wrong(GramMethod):
        def forward(self, gram: Tensor, losses: Tensor | None = None) -> Tensor:
            return gram

    with pytest.raises(ValueError, match=r"returned \(2, 2\)"):
        mtlkernels.aggregate([[torch.ones(2)], [torch.ones(2)]], Wrong())


@pytest.mark.parametrize(
    ("give", "word"),
    [
        (lambda trunk: {"shared": trunk}, "shared= is a Linear: give a list of parameters"),
        (lambda trunk: {"measure": trunk.weight}, "measure= is a Parameter: give a list"),
        (lambda trunk: {"shared": trunk.named_parameters()}, "shared= holds a tuple"),
        (lambda trunk: {"measure": [trunk]}, "measure= holds a Linear: give parameters"),
    ],
)
def test_what_is_no_list_of_parameters_is_told(give, word: str) -> None:
    trunk = nn.Linear(2, 2)
    losses = [trunk(torch.ones(1, 2)).sum(), trunk(torch.ones(1, 2)).square().sum()]
    with pytest.raises(TypeError, match=word):
        mtlkernels.backward(losses, list(trunk.parameters()), Sum(), **give(trunk))
    with pytest.raises(TypeError, match="params is a Parameter: give a list"):
        mtlkernels.backward(losses, trunk.weight, Sum())
    assert trunk.weight.grad is None


def test_aggregate_takes_any_iterables_and_tells_what_is_none_of_its_own() -> None:
    rows = [[torch.ones(2), None], [torch.full((2,), 2.0), torch.ones(3)]]
    want, _ = mtlkernels.aggregate(rows, Sum())
    got, _ = mtlkernels.aggregate((iter(row) for row in rows), Sum())
    for a, b in zip(want, got, strict=True):
        torch.testing.assert_close(a, b)
    with pytest.raises(TypeError, match="task_grads is a dict: give T lists"):
        mtlkernels.aggregate(dict(enumerate(rows)), Sum())
    with pytest.raises(TypeError, match="losses is a list: give a 1-D tensor"):
        mtlkernels.aggregate(rows, Sum(), losses=[1.0, 2.0])
    with pytest.raises(ValueError, match="1 names were given for 2 tasks"):
        mtlkernels.aggregate(rows, Sum(), tasks=["a"])
