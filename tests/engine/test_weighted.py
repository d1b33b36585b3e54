"""One weighted backward: the same .grad as T rows combined, for every kind of graph."""

from __future__ import annotations

import graphs
import pytest
import torch
from graphs import GRAPHS, Problem
from torch import Tensor

import mtlkernels

EXACT = {"rtol": 1e-9, "atol": 1e-12}
KNOWN = torch.tensor([0.3, -1.5, 2.0], dtype=torch.float64)


class Given(mtlkernels.GramMethod):
    """Weights that tell tasks apart, whatever the Gram matrix, which it keeps."""

    def forward(self, gram: Tensor, losses: Tensor | None = None) -> Tensor:
        self.gram = gram
        return KNOWN[: len(gram)]


def grads(problem: Problem) -> list[Tensor | None]:
    return [None if param.grad is None else param.grad.clone() for param in problem.params]


def assert_same(have: list[Tensor | None], want: list[Tensor | None]) -> None:
    for a, b in zip(have, want, strict=True):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            torch.testing.assert_close(a, b, **EXACT)


def expected(problem: Problem, weigh_heads: bool = False) -> list[Tensor | None]:
    """sum_t w_t g_t where at least two losses reach, the plain sum elsewhere."""
    tasks = len(problem.losses)
    columns = list(zip(*graphs.rows(problem), strict=True))
    want: list[Tensor | None] = []
    for column in columns:
        reached = sum(grad is not None for grad in column)
        weigh = weigh_heads or reached >= min(2, tasks)
        parts = [
            (KNOWN[t] if weigh else 1.0) * grad for t, grad in enumerate(column) if grad is not None
        ]
        want.append(sum(parts) if parts else None)  # type: ignore[arg-type]
    return want


WAYS = {
    "rows": {},
    "batched": {"collect": "batched"},
    "no rows": {"apply": "backward"},
    "ghost": {"collect": "ghost"},
}


@pytest.mark.parametrize("weight_heads", [False, True])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("graph", GRAPHS)
def test_every_way_gives_the_same_gradients_and_gram(graph, way, weight_heads) -> None:
    torch.manual_seed(3)
    problem = graph()
    want = expected(problem, weight_heads)
    rows = graphs.rows(problem)
    reach = [sum(row[p] is not None for row in rows) for p in range(len(problem.params))]
    shared = [p for p, count in enumerate(reach) if count >= min(2, len(rows))]
    method = Given()
    report = mtlkernels.backward(
        problem.losses, problem.params, method, weight_heads=weight_heads, **WAYS[way]
    )
    assert_same(grads(problem), want)
    torch.testing.assert_close(method.gram, graphs.gram(rows, shared), **EXACT)
    assert torch.equal(report.weights, KNOWN[: len(rows)])


# K is not of the features' gradients as autograd gives them: a hook there comes after K, and what
# passes one feature counts at no other (tested with heads_on_several_stages).
K_IS_ANOTHER = {graphs.hooks_at_the_cut, graphs.a_layer_of_one_task_below_the_features}


@pytest.mark.parametrize("weight_heads", [False, True])
@pytest.mark.parametrize("graph", [g for g in GRAPHS if g is not graphs.parameter_as_a_loss])
def test_features(graph, weight_heads) -> None:
    torch.manual_seed(4)
    problem = graph()
    want = expected(problem, weight_heads)
    rows = graphs.rows(problem, problem.features)
    if graph is graphs.heads_on_several_stages:  # what passes one feature counts at no other
        torch.manual_seed(4)
        apart = graphs.heads_on_several_stages(detach=True)
        rows = graphs.rows(apart, apart.features)
    method = Given()
    mtlkernels.backward(
        problem.losses,
        problem.params,
        method,
        features=problem.features,
        weight_heads=weight_heads,
    )
    assert_same(grads(problem), want)
    if graph in K_IS_ANOTHER:
        return
    columns = list(range(len(problem.features)))
    torch.testing.assert_close(method.gram, graphs.gram(rows, columns), **EXACT)


@pytest.mark.parametrize("graph", GRAPHS)
def test_measure(graph) -> None:
    torch.manual_seed(5)
    problem = graph()
    want, rows = expected(problem), graphs.rows(problem)
    method = Given()
    mtlkernels.backward(problem.losses, problem.params, method, measure=iter([problem.params[0]]))
    assert_same(grads(problem), want)
    torch.testing.assert_close(method.gram, graphs.gram(rows, [0]), **EXACT)


@pytest.mark.parametrize("named", [[0], [1], [0, 2]])
@pytest.mark.parametrize("graph", [graphs.trunk_and_heads, graphs.some_tasks_only])
def test_named_shared_parameters(graph, named) -> None:
    torch.manual_seed(6)
    problem = graph()
    shared = [problem.params[p] for p in named]
    mtlkernels.backward(problem.losses, problem.params, Given(), shared=shared, retain_graph=True)
    want = grads(problem)
    for ways in ({"measure": [problem.params[0]]}, {"apply": "backward"}, {"collect": "batched"}):
        for param in problem.params:
            param.grad = None
        mtlkernels.backward(
            problem.losses, problem.params, Given(), shared=shared, retain_graph=True, **ways
        )
        assert_same(grads(problem), want)


@pytest.mark.parametrize("way", ["apply", "measure", "features"])
def test_the_weighted_backward_is_an_ordinary_one(way: str) -> None:
    """It runs hooks once where it adds to .grad, and adds in place."""
    torch.manual_seed(0)
    trunk = torch.nn.Linear(3, 4)
    z = trunk(torch.rand(2, 3))
    losses = [(z * (t + 1)).square().sum() for t in range(2)]
    options = {
        "apply": {"apply": "backward"},
        "measure": {"measure": [trunk.weight]},
        "features": {"features": z},
    }[way]
    seen: list[Tensor] = []
    for param in trunk.parameters():
        param.register_post_accumulate_grad_hook(seen.append)
    params = list(trunk.parameters())
    mtlkernels.backward(losses, params, Given(), retain_graph=True, **options)  # type: ignore[arg-type]
    assert {id(param) for param in seen} == {id(param) for param in params}
    assert len(seen) == 2
    first = [(param.grad, param.grad.clone()) for param in params if param.grad is not None]
    mtlkernels.backward(losses, params, Given(), **options)  # type: ignore[arg-type]
    for param, (grad, value) in zip(params, first, strict=True):
        assert param.grad is grad
        torch.testing.assert_close(grad, 2 * value)


def test_nothing_is_written_where_a_head_cannot_hold_its_gradient() -> None:
    trunk, head = torch.nn.Linear(3, 4), torch.nn.Embedding(5, 4, sparse=True)
    z = trunk(torch.rand(2, 3))
    losses = [(z * head(torch.tensor([0, 1]))).sum(), z.square().sum()]
    params = [*trunk.parameters(), *head.parameters()]
    with pytest.raises(TypeError, match="sparse"):
        mtlkernels.backward(losses, params, Given(), features=z)
    assert all(param.grad is None for param in params)


@pytest.mark.parametrize("options", [{"apply": "backward"}, {"measure": True}, {}], ids=str)
def test_a_sparse_gradient_in_a_head_is_told_before_anything_is_written(options) -> None:
    trunk, heads = torch.nn.Linear(4, 3), [torch.nn.Embedding(5, 3, sparse=True) for _ in range(2)]
    params = [p for module in (trunk, *heads) for p in module.parameters()]
    z = torch.tanh(trunk(torch.randn(6, 4)))
    losses = [(z @ head(torch.tensor([1, 2])).T).mean() for head in heads]
    if "measure" in options:
        options = {"measure": [trunk.weight]}
    with pytest.raises(TypeError, match="sparse"):
        mtlkernels.backward(losses, params, mtlkernels.CAGrad(), **options)
    assert all(param.grad is None for param in params)


def test_a_loss_that_passes_the_features_by_is_told() -> None:
    problem = graphs.parameter_as_a_loss()
    with pytest.raises(ValueError, match="loss 2 is not computed from the features"):
        mtlkernels.backward(problem.losses, problem.params, Given(), features=problem.features)
