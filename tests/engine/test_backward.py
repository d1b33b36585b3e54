"""Losses -> .grad: what is shared, what heads get, accumulation, and what wrong input is told."""

from __future__ import annotations

import pytest
import torch
from convolution_and_heads import Model
from no_read_back import NoReadBack
from torch import Tensor, nn

import mtlkernels
from mtlkernels import AvgNorm, CAGrad, GramMethod, Mean, PCGrad, Status, Sum


def expected_direction(model: Model, images: Tensor, weights: Tensor) -> list[Tensor]:
    """sum_t w_t g_t over the trunk, by float64 arithmetic on autograd's gradients."""
    losses = model(images)
    rows = [torch.autograd.grad(loss, model.trunk, retain_graph=True) for loss in losses]
    return [
        sum(w * g.double() for w, g in zip(weights, column, strict=True))
        for column in zip(*rows, strict=True)
    ]


@pytest.mark.parametrize("method", [Sum(), Mean(), PCGrad(), CAGrad(), AvgNorm()], ids=repr)
@pytest.mark.parametrize("form", ["list", "dict", "tensor"])
def test_trunk_gets_the_direction_and_heads_their_own_gradient(model, images, method, form) -> None:
    losses = model(images)
    given = {
        "list": losses,
        "dict": dict(zip("abc", losses, strict=True)),
        "tensor": torch.stack(losses),
    }[form]
    report = mtlkernels.backward(given, list(model.parameters()), method)
    assert report.tasks == (("a", "b", "c") if form == "dict" else ("0", "1", "2"))
    assert report.losses is not None
    torch.testing.assert_close(report.losses, torch.stack(model(images)))
    wanted = expected_direction(model, images, report.weights)
    for param, want in zip(model.trunk, wanted, strict=True):
        assert param.grad is not None
        assert param.grad.stride() == param.stride()
        torch.testing.assert_close(param.grad.double(), want, rtol=1e-5, atol=1e-7)
    for loss, head in zip(model(images), model.heads, strict=True):
        own = torch.autograd.grad(loss, list(head.parameters()))
        for param, want in zip(head.parameters(), own, strict=True):
            torch.testing.assert_close(param.grad, want)
    assert all(param.grad is None for param in model.unused.parameters())
    norm = torch.cat([g.flatten() for g in wanted]).norm()
    torch.testing.assert_close(report.direction_norm(), norm, rtol=1e-5, atol=0)


def test_weighted_heads_equal_a_backward_of_the_weighted_losses(model, images) -> None:
    report = mtlkernels.backward(
        model(images), list(model.parameters()), AvgNorm(), weight_heads=True
    )
    got = [p.grad for p in model.parameters()]
    model.zero_grad()
    (report.weights.float() * torch.stack(model(images))).sum().backward()
    for have, param in zip(got, model.parameters(), strict=True):
        if param.grad is None:
            assert have is None
        else:
            torch.testing.assert_close(have, param.grad, rtol=1e-5, atol=1e-7)


def test_named_shared_parameters_are_balanced_and_the_rest_summed(model, images) -> None:
    shared = list(model.convolution.parameters())
    report = mtlkernels.backward(
        model(images), list(model.parameters()), AvgNorm("min"), shared=shared
    )
    rows = [torch.autograd.grad(loss, shared, retain_graph=True) for loss in model(images)]
    norms = torch.stack([torch.cat([g.flatten() for g in row]).norm() for row in rows])
    torch.testing.assert_close(report.norms().float(), norms)
    plain = torch.autograd.grad(sum(model(images)), list(model.linear.parameters()))
    for param, want in zip(model.linear.parameters(), plain, strict=True):
        torch.testing.assert_close(param.grad, want, rtol=1e-5, atol=1e-7)


def test_a_parameter_that_two_of_three_tasks_reach_is_shared() -> None:
    a, b = (nn.Parameter(torch.randn(4)) for _ in range(2))
    x, y, z = (torch.randn(4) for _ in range(3))
    losses = [(a * x).sum(), (a * y).sum() + (b * x).sum(), (b * z).sum()]
    report = mtlkernels.backward(losses, [a, b], Mean())
    zero = torch.zeros(4)
    G = torch.stack([torch.cat(r) for r in ((x, zero), (y, x), (zero, z))]).double()
    torch.testing.assert_close(report.gram, G @ G.T, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(a.grad, (x + y) / 3)
    torch.testing.assert_close(b.grad, (x + z) / 3)


def test_one_loss_is_balanced_over_all_it_reaches(model, images) -> None:
    mtlkernels.backward([model(images)[0]], list(model.parameters()), PCGrad())
    got = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad()
    model(images)[0].backward()
    for name, param in model.named_parameters():
        if param.grad is None:
            assert got[name] is None, name
        else:
            torch.testing.assert_close(got[name], param.grad, rtol=1e-6, atol=1e-9)


def test_gradients_add_up_as_autograds_do_and_keep_their_addresses(model, images) -> None:
    params = list(model.parameters())
    mtlkernels.backward(model(images), params, Mean())
    once = [None if p.grad is None else p.grad.clone() for p in params]
    places = [None if p.grad is None else p.grad.data_ptr() for p in params]
    mtlkernels.backward(model(images), params, Mean())
    for param, first, place in zip(params, once, places, strict=True):
        if first is not None:
            assert param.grad is not None
            torch.testing.assert_close(param.grad, 2 * first)
            assert param.grad.data_ptr() == place
    for param in params:
        if param.grad is not None:
            param.grad.zero_()
    mtlkernels.backward(model(images), params, Mean())
    for param, first, place in zip(params, once, places, strict=True):
        if first is not None:
            assert param.grad is not None
            torch.testing.assert_close(param.grad, first)
            assert param.grad.data_ptr() == place


def test_a_gradient_that_somebody_else_created_is_added_to(model, images) -> None:
    weight = model.linear.weight
    weight.grad = torch.ones_like(weight)
    mine = weight.grad
    mtlkernels.backward(model(images), list(model.parameters()), Sum())
    assert weight.grad is mine
    expected = expected_direction(model, images, torch.ones(3))[2]
    torch.testing.assert_close(mine.double() - 1, expected, rtol=1e-4, atol=1e-5)


def test_memory_between_somebody_elses_gradients_is_left_alone() -> None:
    """Consecutive views of one buffer, with no padding between them, are not our flat vector."""
    p, q, r = (nn.Parameter(torch.ones(n)) for n in (10, 6, 6))
    buffer = torch.full((22,), 7.0)
    p.grad, q.grad, r.grad = buffer[:10], buffer[10:16], buffer[16:]
    mtlkernels.backward([p.sum() + q.sum(), p.sum() + r.sum()], [p, q, r], Sum())
    assert torch.equal(buffer, torch.tensor([9.0] * 10 + [8.0] * 12))


@pytest.mark.parametrize(
    "form",
    [
        lambda losses: torch.stack(losses) * torch.tensor([1.0, 1.0, 1.0]),
        lambda losses: [torch.stack(losses)[t] for t in (0, 1, -1)],
        lambda losses: [entry + 0.0 for entry in torch.stack(losses)],
        lambda losses: torch.amp.GradScaler("cpu", init_scale=1.0).scale(torch.stack(losses)),
    ],
    ids=["weighted", "selected", "iterated", "scaled"],
)
def test_stacked_losses_do_not_make_heads_shared(model, images, form) -> None:
    params = list(model.parameters())
    expected = mtlkernels.backward(model(images), params, AvgNorm())
    grads = [None if p.grad is None else p.grad.clone() for p in params]
    model.zero_grad()
    report = mtlkernels.backward(form(model(images)), params, AvgNorm())
    torch.testing.assert_close(report.gram, expected.gram)
    for param, want in zip(params, grads, strict=True):
        torch.testing.assert_close(param.grad, want)


def test_weights_of_stacked_losses_count(model, images) -> None:
    report = mtlkernels.backward(
        torch.stack(model(images)) * torch.tensor([1.0, 3.0, -2.0]), model.trunk, Sum()
    )
    plain = mtlkernels.backward(model(images), model.trunk, Sum())
    torch.testing.assert_close(report.norms() / plain.norms(), torch.tensor([1.0, 3, 2]).double())


def test_a_compiled_model_must_name_what_is_shared(model, images) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager")
    params = list(model.parameters())
    with pytest.raises(ValueError, match=r"torch.compile.*shared="):
        mtlkernels.backward(compiled(images), params, PCGrad())
    assert all(p.grad is None for p in params)
    report = mtlkernels.backward(compiled(images), params, PCGrad(), shared=iter(model.trunk))
    eager = mtlkernels.backward(model(images), params, PCGrad())
    torch.testing.assert_close(report.gram, eager.gram)


def test_gradients_are_aligned_views_of_one_vector(model, images) -> None:
    mtlkernels.backward(model(images), list(model.parameters()), Sum())
    grads = [p.grad for p in model.trunk]
    storage = {g.untyped_storage().data_ptr() for g in grads}
    assert len(storage) == 1
    assert all(g.storage_offset() % 16 == 0 for g in grads)


def test_the_last_backward_frees_the_graph_unless_told_otherwise(model, images) -> None:
    params = list(model.parameters())
    losses = model(images)
    mtlkernels.backward(losses, params, Sum(), retain_graph=True)
    mtlkernels.backward(losses, params, Sum())
    with pytest.raises(RuntimeError, match="second time"):
        losses[0].backward()


def test_parameters_of_several_dtypes_are_balanced_together() -> None:
    torch.manual_seed(0)
    a = nn.Parameter(torch.randn(5))
    b = nn.Parameter(torch.randn(7, dtype=torch.float64))
    c = nn.Parameter(torch.randn(3, dtype=torch.bfloat16))
    losses = [
        s * ((a * s).sin().sum() + (b * s).cos().sum().float() + (c * s).square().sum().float())
        for s in (1.0, -2.0)
    ]
    report = mtlkernels.backward(losses, [a, b, c], PCGrad())
    for param in (a, b, c):
        assert param.grad is not None
        assert param.grad.dtype == param.dtype
    rows = [
        [(s * s * (a * s).cos()), -(s * s * (b * s).sin()), (2 * s**3 * c).to(torch.bfloat16)]
        for s in (1.0, -2.0)
    ]
    G = torch.stack([torch.cat([g.double() for g in row]) for row in rows])
    torch.testing.assert_close(report.gram, G @ G.T, rtol=2e-2, atol=1e-6)


@pytest.mark.parametrize("method", [Sum(), Mean(), PCGrad(), CAGrad(), AvgNorm()], ids=repr)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_is_named_and_reaches_grad(model, images, method, value) -> None:
    losses = model(images)
    losses[1] = losses[1] * value
    report = mtlkernels.backward(losses, list(model.parameters()), method)
    assert report.status.tolist() == [0, Status.NON_FINITE, 0]
    assert report.warnings() == ["1: NON_FINITE"]
    assert not all(p.grad.isfinite().all() for p in model.trunk)


@pytest.mark.parametrize("method", [Sum(), Mean(), PCGrad(), CAGrad(), AvgNorm()], ids=repr)
def test_nothing_is_read_back(model, images, method: GramMethod) -> None:
    """On a device each of these would wait for it. (The reference solvers run inside an op.)"""
    losses = model(images)
    with NoReadBack():
        report = mtlkernels.backward(losses, list(model.parameters()), method)
        report.norms(), report.cosines(), report.conflict_rate(), report.direction_norm()


def test_a_method_of_ones_own(model, images) -> None:
    class First(GramMethod):
        def forward(self, gram: Tensor, losses: Tensor | None = None) -> Tensor:
            return torch.nn.functional.one_hot(torch.tensor(0), len(gram)).to(gram)

    report = mtlkernels.backward(model(images), list(model.parameters()), First())
    assert report.status.tolist() == [0, 0, 0]
    wanted = torch.autograd.grad(model(images)[0], model.trunk)
    for param, want in zip(model.trunk, wanted, strict=True):
        torch.testing.assert_close(param.grad, want)


def test_report_of_conflicting_gradients() -> None:
    G = torch.tensor([[3.0, 4.0], [-3.0, -4.0], [4.0, -3.0]], dtype=torch.float64)
    _, report = mtlkernels.aggregate([[g] for g in G], Mean(), tasks=["x", "y", "z"])
    torch.testing.assert_close(report.norms(), torch.full((3,), 5.0).double())
    expected = torch.tensor([[1.0, -1, 0], [-1, 1, 0], [0, 0, 1]], dtype=torch.float64)
    torch.testing.assert_close(report.cosines(), expected)
    assert float(report.conflict_rate()) == pytest.approx(1 / 3)
    assert float(report.direction_norm()) == pytest.approx(5 / 3)
    assert report.tasks == ("x", "y", "z")


def test_several_ranks_are_refused_before_they_drift_apart(model, images, monkeypatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 4)
    with pytest.raises(NotImplementedError, match="4 ranks"):
        mtlkernels.backward(model(images), list(model.parameters()), Sum())
    assert all(p.grad is None for p in model.parameters())
