"""Loss methods through `backward` and `MTLOptimizer`: the gradients of one plain backward."""

from __future__ import annotations

import copy

import pytest
import torch
from convolution_and_heads import Model
from no_read_back import NoReadBack
from torch import Tensor, nn

import mtlkernels
from mtlkernels import (
    DWA,
    FAMO,
    GLS,
    IGB,
    IMTLL,
    RLW,
    SI,
    SLAW,
    STCH,
    UW,
    UWSO,
    GO4Align,
    LossMethod,
    MTLOptimizer,
    Status,
)

pytestmark = pytest.mark.usefixtures("one_thread")

MAKE = {
    cls.__name__: (lambda cls=cls: cls(3) if cls in (UW, IMTLL) else cls())
    for cls in (SI, GLS, UW, UWSO, IMTLL, RLW, DWA, SLAW, STCH, IGB, FAMO, GO4Align)
}
every_method = pytest.mark.parametrize("make", MAKE.values(), ids=MAKE.keys())


@pytest.fixture
def model() -> Model:
    torch.manual_seed(0)
    return Model()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(1))


def assert_same_gradients(params: list[nn.Parameter], expected: list[nn.Parameter]) -> None:
    for param, other in zip(params, expected, strict=True):
        assert (param.grad is None) == (other.grad is None)
        if param.grad is not None:
            torch.testing.assert_close(param.grad, other.grad, rtol=1e-5, atol=1e-6)


@every_method
@pytest.mark.parametrize("form", ["list", "dict", "tensor"])
def test_gradients_and_weights_are_those_of_a_plain_backward(make, model, images, form) -> None:
    """Over three steps that add up, in trunk, heads and the method's own parameters."""
    plain, method, twin = copy.deepcopy(model), make(), make()
    params = list(model.parameters())
    for step in range(3):
        losses = model(images + step)
        given = {
            "list": losses,
            "dict": dict(zip("abc", losses, strict=True)),
            "tensor": torch.stack(losses),
        }[form]
        report = mtlkernels.backward(given, params, method)
        leaf = torch.stack(plain(images + step))
        leaf.retain_grad()
        twin(leaf).backward()
        torch.testing.assert_close(report.weights.float(), leaf.grad)
        torch.testing.assert_close(report.losses, leaf.detach())
        assert report.gram is None
        assert report.status.tolist() == [0, 0, 0]
        assert report.tasks == (("a", "b", "c") if form == "dict" else ("0", "1", "2"))
        assert not any(x.requires_grad for x in (report.weights, report.losses, report.status))
    assert_same_gradients(params, list(plain.parameters()))
    assert_same_gradients(list(method.parameters()), list(twin.parameters()))
    assert all(p.grad is None for p in model.unused.parameters())


def test_there_is_one_backward(model, images) -> None:
    calls = []
    losses = model(images)
    model.linear.weight.register_hook(lambda grad: calls.append(grad))
    mtlkernels.backward(losses, list(model.parameters()), SI(), retain_graph=True)
    assert len(calls) == 1
    mtlkernels.backward(losses, list(model.parameters()), SI())
    with pytest.raises(RuntimeError, match="second time"):
        losses[0].backward()


def test_gradients_are_aligned_views_that_stay_where_they_are(model, images) -> None:
    params = [p for p in model.parameters() if not any(p is q for q in model.unused.parameters())]
    mtlkernels.backward(model(images), list(model.parameters()), SI())
    places = [p.grad.data_ptr() for p in params]
    assert len({p.grad.untyped_storage().data_ptr() for p in params}) == 1
    assert all(p.grad.storage_offset() % 16 == 0 for p in params)
    assert all(p.grad.stride() == p.stride() for p in params)
    mtlkernels.backward(model(images), list(model.parameters()), SI())
    assert [p.grad.data_ptr() for p in params] == places


def test_entries_of_a_stack_beside_a_loss_of_its_own(model, images) -> None:
    plain = copy.deepcopy(model)
    losses = model(images)
    mtlkernels.backward(
        [*torch.stack(losses[:2]).unbind(), losses[2].reshape(1)], list(model.parameters()), SI()
    )
    SI()(torch.stack(plain(images))).backward()
    assert_same_gradients(list(model.parameters()), list(plain.parameters()))


def test_heads_alone_and_several_dtypes_are_served() -> None:
    p = nn.Parameter(torch.ones(2))
    q = nn.Parameter(torch.ones(2, dtype=torch.float64))
    report = mtlkernels.backward([2 * p.sum(), 5 * q.sum()], [p, q], SI())
    assert report.weights.tolist() == [0.25, 0.1]
    assert report.weights.dtype == torch.float64
    torch.testing.assert_close(p.grad, torch.full((2,), 0.5))
    torch.testing.assert_close(q.grad, torch.full((2,), 0.5).double())
    double = mtlkernels.backward([2 * q.sum(), 5 * q.sum()], [q], SI())
    assert not double.losses.requires_grad


@every_method
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_is_named_and_reaches_every_gradient(
    make, model, images, value
) -> None:
    losses = model(images)
    losses[1] = losses[1] * value
    method = make()
    report = mtlkernels.backward(losses, list(model.parameters()), method)
    assert report.status.tolist() == [0, Status.NON_FINITE, 0]
    assert report.warnings() == ["1: NON_FINITE"]
    assert report.weights.isnan().all()
    reached = [*model.trunk, *model.heads.parameters(), *method.parameters()]
    assert all(p.grad.isnan().all() for p in reached)


def test_a_loss_without_logarithm_is_named(model, images) -> None:
    losses = model(images)
    losses[2] = losses[2] - 100
    report = mtlkernels.backward(losses, list(model.parameters()), GLS())
    assert report.warnings() == ["2: INVALID_LOSS"]
    assert report.weights[2] == 0
    assert model.linear.weight.grad.isfinite().all()


@every_method
def test_nothing_is_read_back(make, model, images) -> None:
    method, losses = make(), model(images)
    with NoReadBack():
        mtlkernels.backward(losses, list(model.parameters()), method)
        if isinstance(method, FAMO):
            method.update(torch.stack(losses).detach())


def test_a_method_of_ones_own(model, images) -> None:
    class Squares(LossMethod):
        def forward(self, losses: Tensor) -> Tensor:
            return losses.square().sum()

    losses = model(images)
    report = mtlkernels.backward(losses, list(model.parameters()), Squares())
    torch.testing.assert_close(report.weights.float(), 2 * torch.stack(losses).detach())
    assert report.status.tolist() == [0, 0, 0]
    losses = model(images)
    losses[0] = losses[0] * float("nan")
    report = mtlkernels.backward(losses, list(model.parameters()), Squares())
    assert report.status.tolist() == [Status.NON_FINITE, 0, 0]


@pytest.mark.parametrize(
    "wrong",
    [lambda losses: losses, lambda losses: losses.detach().sum(), lambda losses: 1.0],
    ids=["vector", "detached", "float"],
)
def test_a_method_that_returns_something_else_is_told(wrong, model, images) -> None:
    class Wrong(LossMethod):
        def forward(self, losses: Tensor) -> Tensor:
            return wrong(losses)

    with pytest.raises(ValueError, match="Wrong must return a scalar"):
        mtlkernels.backward(model(images), list(model.parameters()), Wrong())
    assert model.linear.weight.grad is None


def test_what_loss_methods_have_no_use_for_is_told(model, images) -> None:
    params = list(model.parameters())
    for option in ({"shared": model.trunk}, {"weight_heads": True}):
        with pytest.raises(ValueError, match="does not apply to SI"):
            mtlkernels.backward(model(images), params, SI(), **option)
        own = torch.optim.SGD(params, lr=0.1)
        with pytest.raises(ValueError, match="does not apply to SI"):
            MTLOptimizer(own, SI(), **option)
        assert type(own) is torch.optim.SGD
    with pytest.raises(TypeError, match="SI weighs losses"):
        mtlkernels.aggregate([[torch.ones(2)]], SI())
    with pytest.raises(ValueError, match="no loss reaches"):
        mtlkernels.backward(model(images), [nn.Parameter(torch.ones(1))], SI())
    assert all(p.grad is None for p in params)


def test_a_report_without_gram_matrix_says_so(model, images) -> None:
    report = mtlkernels.backward(model(images), list(model.parameters()), SI())
    for ask in (report.norms, report.cosines, report.conflict_rate, report.direction_norm):
        with pytest.raises(ValueError, match="no Gram matrix"):
            ask()


# --------------------------------------------------------------------------- the optimizer


def set_up(make, seed: int = 0) -> tuple[Model, MTLOptimizer]:
    torch.manual_seed(seed)
    model, method = Model(), make()
    base = torch.optim.AdamW([*model.parameters(), *method.parameters()], lr=1e-2)
    return model, MTLOptimizer(base, method)


def train(model: Model, optimizer: MTLOptimizer, images: Tensor, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        optimizer.backward(model(images))
        optimizer.step()
        if isinstance(optimizer.method, FAMO):
            with torch.no_grad():
                optimizer.method.update(torch.stack(model(images)))


@every_method
def test_training_lowers_the_losses(make, images) -> None:
    model, optimizer = set_up(make)
    before = torch.stack(model(images))
    train(model, optimizer, images, 15)
    assert torch.stack(model(images)).log().sum() < before.log().sum()


@pytest.mark.parametrize("make", [MAKE["UW"], MAKE["IMTLL"]])
def test_the_optimizer_trains_what_the_method_learns(make, images) -> None:
    model, optimizer = set_up(make)
    torch.manual_seed(0)
    plain, method = Model(), make()
    own = torch.optim.AdamW([*plain.parameters(), *method.parameters()], lr=1e-2)
    train(model, optimizer, images, 5)
    for _ in range(5):
        own.zero_grad()
        method(torch.stack(plain(images))).backward()
        own.step()
    assert not torch.equal(method.s, make().s)
    torch.testing.assert_close(optimizer.method.s, method.s)
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@every_method
@pytest.mark.parametrize("how", ["state_dict", "deepcopy"])
def test_copies_continue_bit_for_bit(make, how, images) -> None:
    model, optimizer = set_up(make)
    train(model, optimizer, images, 3)
    if how == "deepcopy":
        fresh, other = copy.deepcopy((model, optimizer))
    else:
        saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
        fresh, other = set_up(make, seed=9)
        fresh.load_state_dict(saved[0])
        other.load_state_dict(saved[1])
    train(model, optimizer, images, 3)
    train(fresh, other, images, 3)
    for a, b in zip(model.parameters(), fresh.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_method_by_name(model, images) -> None:
    optimizer = MTLOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), "uw-so")
    assert isinstance(optimizer.method, UWSO)
    optimizer.backward(model(images))
    assert model.heads[0].weight.grad is not None


def test_a_gradient_scaler_scales_the_scalar(model, images) -> None:
    """The way that `backward`'s docstring names: the losses reach the method unscaled."""
    plain = copy.deepcopy(model)
    own = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(GLS()(torch.stack(model(images)))).backward()
    scaler.unscale_(own)
    mtlkernels.backward(plain(images), list(plain.parameters()), GLS())
    assert_same_gradients(list(model.parameters()), list(plain.parameters()))
