"""optimizer.loss: one loss whose own backward pass adds to .grad what optimizer.backward adds."""

from __future__ import annotations

import copy
import gc
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from gram_methods import ARGUMENTS, TWO_TASKS
from loss_methods import MAKE
from torch import Tensor, nn
from trunk_and_heads import Model

import mtlkernels
from mtlkernels import GramMethod, LossMethod, MTLOptimizer, PCGrad, RowMethod
from mtlkernels.methods import METHODS

ROWS = {"Tracked": lambda: mtlkernels.Tracked(PCGrad(), 0.7)}


def every_method() -> dict[str, Callable[[], Any]]:
    """All registered methods, for three tasks (some Gram methods take two)."""
    made: dict[str, Callable[[], Any]] = {}
    for cls in METHODS.values():
        name = cls.__name__
        if issubclass(cls, GramMethod):
            given = ARGUMENTS.get(name)
            made[name] = cls if given is None else (lambda given=given: given(3))
        elif issubclass(cls, RowMethod):
            made[name] = ROWS.get(name, cls)
    made |= {name: (lambda make=make: make(3)) for name, make in MAKE.items()}
    del made["PerPart"]  # takes parts=, of which it makes Gram matrices as the others
    return made


EVERY = every_method()


def pair(method: Any = None, dtype: torch.dtype = torch.float64, **options: Any) -> Any:
    """The same model and optimizer with each call."""
    torch.manual_seed(0)
    model = Model().to(dtype)
    method = PCGrad() if method is None else method
    params = [*model.parameters(), *method.parameters()]
    return model, MTLOptimizer(torch.optim.SGD(params, lr=0.1), method, **options)


def batches(count: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(6, 5, dtype=torch.float64, generator=generator) for _ in range(count)]


def grads(optimizer: MTLOptimizer) -> list[Tensor | None]:
    params = [param for group in optimizer.param_groups for param in group["params"]]
    return [None if param.grad is None else param.grad.clone() for param in params]


def assert_same(have: Any, want: Any) -> None:
    for one, other in zip(have, want, strict=True):
        assert (one is None) == (other is None)
        assert one is None or torch.equal(one, other)


@pytest.mark.parametrize("factor", [1.0, 1024.0, 1 / 3, -2.0])
@pytest.mark.parametrize("make", EVERY.values(), ids=EVERY.keys())
def test_adds_to_the_bit_what_backward_adds(make, factor) -> None:
    model, optimizer = pair(make())
    other, direct = pair(make())
    tasks = 2 if type(optimizer.method).__name__ in TWO_TASKS else 3
    for x in batches(2):
        losses, theirs = (dict(list(m(x).items())[:tasks]) for m in (model, other))
        loss = optimizer.loss(losses)
        assert loss.shape == ()
        assert torch.equal(loss, sum(losses.values()))
        (loss * factor).backward()
        scaler = None if factor == 1 else torch.tensor(factor, dtype=torch.float64)
        report = direct.backward(theirs, scaler=scaler)
        assert_same(grads(optimizer), grads(direct))
        assert optimizer.report.tasks == report.tasks
        assert_same([optimizer.report.losses], [report.losses])
        for one in (optimizer, direct):
            one.step()
            one.zero_grad()


def _trunk(model: Model) -> list[nn.Parameter]:
    return list(model.trunk[2].parameters())


@pytest.mark.parametrize(
    "options",
    [
        *({"apply": "backward"}, {"measure": _trunk}, {"every": 2}, {"collect": "batched"}),
        *({"weight_heads": True}, {"rows_dtype": torch.bfloat16}, {"shared": _trunk}),
    ],
    ids=lambda options: next(iter(options)),
)
def test_every_route_of_a_step(options) -> None:
    both = []
    for _ in range(2):
        torch.manual_seed(0)
        model = Model()
        chosen = {k: v(model) if v is _trunk else v for k, v in options.items()}
        base = torch.optim.SGD(model.parameters(), lr=0.1)
        both.append((model, MTLOptimizer(base, "upgrad", **chosen)))
    (model, optimizer), (other, direct) = both
    for x in batches():
        optimizer.loss(model(x.float())).backward()
        direct.backward(other(x.float()))
        assert_same(grads(optimizer), grads(direct))
        for one in (optimizer, direct):
            one.step()
            one.zero_grad()


def _heads(model: Model, z: Tensor) -> list[Tensor]:
    return [(head(z) - t).square().mean() for t, head in enumerate(model.heads)]


def test_features() -> None:
    (model, optimizer), (other, direct) = pair(), pair()
    z, y = model.trunk(batches()[0]), other.trunk(batches()[0])
    optimizer.loss(_heads(model, z), features=z).backward()
    direct.backward(_heads(other, y), features=y)
    assert_same(grads(optimizer), grads(direct))


@pytest.mark.parametrize(
    "use",
    [
        *(torch.Tensor.mean, torch.Tensor.sum, torch.Tensor.clone, torch.Tensor.double),
        *(lambda loss: loss.to("cpu"), lambda loss: loss.view(1), lambda loss: loss[None].sum()),
        *(lambda loss: loss / 4 * 4, lambda loss: (loss + loss) / 2, lambda loss: loss.float()),
    ],
)
def test_what_a_trainer_does_to_a_loss(use) -> None:
    (model, optimizer), (other, direct) = pair(), pair()
    loss = optimizer.loss(model(batches()[0]))
    assert loss.item() == loss.detach().item()
    use(loss).backward()
    direct.backward(other(batches()[0]))
    assert_same(grads(optimizer), grads(direct))


@dataclass
class Fields:
    a: Tensor
    b: Tensor
    c: Tensor


class Named(NamedTuple):
    a: Tensor
    b: Tensor
    c: Tensor


class Dict:
    """A TensorDict without batch dimensions: it has items and iterates over nothing."""

    def __init__(self, losses: Any) -> None:
        self.items = dict(zip("abc", losses, strict=True)).items


@pytest.mark.parametrize(
    "hold",
    [
        *(list, tuple, torch.stack, lambda v: dict(zip("abc", v, strict=True))),
        *(lambda v: Fields(*v), lambda v: Named(*v), Dict),
    ],
)
def test_containers(hold) -> None:
    (model, optimizer), (other, direct) = pair(), pair()
    values = list(model(batches()[0]).values())
    loss = optimizer.loss(hold(values))
    torch.testing.assert_close(loss, sum(values))
    loss.backward()
    report = direct.backward(hold(list(other(batches()[0]).values())))
    assert_same(grads(optimizer), grads(direct))
    assert optimizer.report.tasks == report.tasks


def test_absent_tasks() -> None:
    model, optimizer = pair()
    losses = {**model(batches()[0]), "task 1": None}
    loss = optimizer.loss(losses)
    torch.testing.assert_close(loss, losses["task 0"] + losses["task 2"])
    loss.backward()
    assert optimizer.report.present().tolist() == [True, False, True]


@pytest.mark.parametrize(
    "losses", [None, {}, [None, None], "x", 3.0, torch.ones(2, 2), [torch.ones(2)]], ids=str
)
def test_wrong_losses_are_refused_at_once(losses) -> None:
    with pytest.raises((TypeError, ValueError)):
        pair()[1].loss(losses)


def test_a_loss_without_graph_beside_others() -> None:
    model, optimizer = pair()
    with pytest.raises(ValueError, match="'task 1' has no graph"):
        optimizer.loss({**model(batches()[0]), "task 1": torch.tensor(1.0)})


def test_the_report_is_the_last_steps() -> None:
    model, optimizer = pair()
    assert optimizer.report is None
    loss = optimizer.loss(model(batches()[0]))
    assert optimizer.report is None
    loss.backward()
    first = optimizer.report
    assert first is not None
    assert optimizer.backward(model(batches()[1])) is optimizer.report is not first


def test_a_penalty_gets_its_ordinary_gradient() -> None:
    (model, optimizer), (other, direct) = pair(), pair()
    (
        optimizer.loss(model(batches()[0])) + sum(p.square().sum() for p in model.parameters())
    ).backward()
    direct.backward(other(batches()[0]))
    for param, plain in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(param.grad, plain.grad + 2 * plain.detach())


@pytest.mark.parametrize("first", [True, False])
def test_a_penalty_on_activations_shares_the_graph(first) -> None:
    (model, optimizer), (other, direct) = pair(), pair()
    z, y = model.trunk(batches()[0]), other.trunk(batches()[0])
    losses, theirs = _heads(model, z), _heads(other, y)
    if first:
        total = z.square().mean() + losses[0] + 2 * optimizer.loss(losses)
    else:
        total = 2 * optimizer.loss(losses) + z.square().mean() + losses[0]
    total.backward()
    direct.backward(theirs, scaler=torch.tensor(2.0), retain_graph=True)
    (y.square().mean() + theirs[0]).backward()
    for param, plain in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(param.grad, plain.grad)


@pytest.mark.filterwarnings("ignore:the losses reach .* in none of the optimizer's groups")
def test_two_balanced_losses_in_one_backward() -> None:
    """As of a GAN: two optimizers, and losses of one graph."""

    def step(together: bool) -> list[Tensor | None]:
        torch.manual_seed(0)
        maker, judge = nn.Linear(4, 5).double(), Model().double()
        one = MTLOptimizer(torch.optim.SGD(maker.parameters(), lr=0.1), "pcgrad")
        two = MTLOptimizer(torch.optim.SGD(judge.parameters(), lr=0.1), "upgrad")
        losses = judge(maker(torch.ones(3, 4, dtype=torch.float64)))
        against = {name: -loss for name, loss in losses.items()}
        if together:
            (one.loss(losses) + two.loss(against)).backward()
        else:
            one.backward(losses, retain_graph=True)
            two.backward(against)
        return grads(one) + grads(two)

    assert_same(step(True), step(False))


def test_without_gradients_it_is_the_plain_sum() -> None:
    model, optimizer = pair()
    losses = model(batches()[0])
    with torch.no_grad():
        assert not optimizer.loss(losses).requires_grad
        assert torch.equal(optimizer.loss(losses), sum(losses.values()))
    with torch.inference_mode():
        losses = model(batches()[0])
        assert torch.equal(optimizer.loss(losses), sum(losses.values()))
    model.requires_grad_(False)
    assert not optimizer.loss(model(batches()[0])).requires_grad
    assert optimizer.report is None


def test_it_is_differentiated_once() -> None:
    model, optimizer = pair()
    for keep in (False, True):
        loss = optimizer.loss(model(batches()[0]))
        loss.backward(retain_graph=keep)
        before = grads(optimizer)
        with pytest.raises(RuntimeError, match="differentiated before"):
            loss.backward()
        assert_same(grads(optimizer), before)
    optimizer.zero_grad()
    with pytest.raises(RuntimeError, match="create_graph=True"):
        optimizer.loss(model(batches()[0])).backward(create_graph=True)
    assert grads(optimizer) == [None] * 10
    with pytest.raises(RuntimeError, match="not have been used"):
        torch.autograd.grad(optimizer.loss(model(batches()[0])), list(model.parameters()))


def test_the_graph_is_kept_where_the_caller_keeps_it() -> None:
    model, optimizer = pair()
    losses = model(batches()[0])
    optimizer.loss(losses).backward(retain_graph=True)
    first = grads(optimizer)
    optimizer.zero_grad()
    optimizer.loss(losses).backward()
    assert_same(grads(optimizer), first)
    with pytest.raises(RuntimeError, match="second time"):
        losses["task 0"].backward()


@pytest.fixture
def no_collector():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("differentiated", [False, True])
def test_nothing_refers_to_it_afterwards(differentiated) -> None:
    model, optimizer = pair()
    losses = model(batches()[0])
    loss = optimizer.loss(losses)
    values = [weakref.ref(value) for value in losses.values()]
    del losses
    assert all(value() is not None for value in values)
    if differentiated:
        loss.backward()
        assert all(value() is None for value in values)
    node = weakref.ref(loss.grad_fn)
    del loss
    assert node() is None
    assert all(value() is None for value in values)
    assert (optimizer.report is None) == (not differentiated)
    assert (grads(optimizer)[0] is None) == (not differentiated)


@pytest.mark.usefixtures("no_collector")
def test_saved_activations_are_freed() -> None:
    model, optimizer = pair()
    saved = []

    class Saved:
        def __init__(self, tensor: Tensor) -> None:
            self.tensor = tensor

    def pack(tensor: Tensor) -> Saved:
        held = Saved(tensor)
        saved.append(weakref.ref(held))
        return held

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda held: held.tensor):
        z = model.trunk(batches()[0])
        of_trunk = len(saved)
        losses = _heads(model, z)
    loss = optimizer.loss(losses)
    assert of_trunk > 3
    assert all(ref() is not None for ref in saved)
    loss.backward()
    assert all(ref() is None for ref in saved[:of_trunk])  # although losses and loss are there
    del losses, z
    assert all(ref() is None for ref in saved)


class BrokenError(Exception):
    pass


class Broken(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        raise BrokenError


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("options", [{}, {"apply": "backward"}, {"collect": "batched"}], ids=str)
def test_an_exception_leaves_grad_as_it_was(options, there) -> None:
    model, optimizer = pair(check=False, **options)
    if there:
        for param in model.parameters():
            param.grad = torch.ones_like(param)
    before, values = [param.grad for param in model.parameters()], grads(optimizer)
    losses = model(batches()[0])
    with pytest.raises(BrokenError):
        optimizer.loss({**losses, "task 1": Broken.apply(losses["task 1"])}).backward()

    def fail(grad: Tensor) -> None:
        raise BrokenError

    model.trunk[0].weight.register_hook(fail)
    with pytest.raises(BrokenError):
        optimizer.loss(model(batches()[0])).backward()
    assert all(p.grad is grad for p, grad in zip(model.parameters(), before, strict=True))
    assert_same(grads(optimizer), values)


@pytest.mark.parametrize("method", ["pcgrad", "nashmtl", "graddrop", "moco", "famo"])
def test_factors_that_are_no_scale(method) -> None:
    for factor in (0.0, float("inf"), float("nan")):
        model, optimizer = pair(mtlkernels.get_method(method))
        (optimizer.loss(model(batches()[0])) * factor).backward()
        found = torch.cat([param.grad.flatten() for param in model.parameters()])
        assert (found == 0).all() if factor == 0 else not found.isfinite().all()


def test_a_grad_scaler_scales_unscales_and_skips() -> None:
    (model, optimizer), (other, direct) = pair(), pair()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(optimizer.loss(model(batches()[0])) / 2).backward()
    scaler.unscale_(optimizer)
    direct.backward(other(batches()[0]), scaler=torch.tensor(0.5))
    assert_same(grads(optimizer), grads(direct))
    scaler.step(optimizer)
    scaler.update()
    before = copy.deepcopy(model.state_dict())
    optimizer.zero_grad()
    scaler.scale(optimizer.loss(model(batches()[0])) * float("inf")).backward()
    scaler.step(optimizer)
    scaler.update()
    assert_same(model.state_dict().values(), before.values())
    assert scaler.get_scale() == 512.0


def test_autocast() -> None:
    (model, optimizer), (other, direct) = pair(dtype=torch.float32), pair(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses, theirs = model(batches()[0].float()), other(batches()[0].float())
        loss = optimizer.loss(losses)
    assert loss.dtype == sum(losses.values()).dtype
    loss.backward()
    direct.backward(theirs)
    assert_same(grads(optimizer), grads(direct))


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
def test_anomaly_mode_and_another_thread() -> None:
    (model, optimizer), (other, direct) = pair(mtlkernels.FAMO()), pair(mtlkernels.FAMO())
    with torch.autograd.detect_anomaly():
        loss = optimizer.loss(model(batches()[0]))
        thread = threading.Thread(target=loss.backward)
        thread.start()
        thread.join()
    direct.backward(other(batches()[0]))
    assert_same(grads(optimizer), grads(direct))


def test_hooks_of_the_loss_see_and_change_the_factor() -> None:
    (model, optimizer), (other, direct) = pair(), pair()
    loss = optimizer.loss(model(batches()[0]))
    seen: list[Tensor] = []
    loss.register_hook(lambda grad: seen.append(grad) or grad * 8)
    (loss / 4).backward()
    direct.backward(other(batches()[0]), scaler=torch.tensor(2.0))
    assert seen == [torch.tensor(0.25)]
    assert_same(grads(optimizer), grads(direct))


def test_a_balanced_loss_among_losses_is_refused() -> None:
    model, optimizer = pair()
    losses = model(batches()[0])
    for depth in (1, 2):
        with pytest.raises(ValueError, match="depends on another balanced loss"):
            optimizer.loss([optimizer.loss(losses) / depth, losses["task 0"]])
    with pytest.raises(ValueError, match="'1' depends on another balanced loss"):
        optimizer.backward([losses["task 0"], optimizer.loss(losses)])


@pytest.mark.parametrize("whole", [False, True])
def test_inside_torch_compile_a_sentence_points_to_compile_step(whole) -> None:
    model, optimizer = pair()

    @torch.compile(backend="eager", fullgraph=whole)
    def step(x: Tensor) -> None:
        optimizer.loss(model(x)).backward()

    with pytest.raises(Exception, match="compile_step"):
        step(batches()[0])
    torch._dynamo.reset()


def test_balanced_loss_is_the_same_without_an_optimizer() -> None:
    (model, _), (other, direct) = pair(), pair()
    reports: list[mtlkernels.Report] = []
    loss = mtlkernels.balanced_loss(
        model(batches()[0]), model.parameters(), PCGrad(), on_report=reports.append
    )
    assert not reports
    (2 * loss).backward()
    report = direct.backward(other(batches()[0]), scaler=torch.tensor(2.0))
    for param, plain in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(param.grad, plain.grad)
    assert torch.equal(reports[0].gram, report.gram)


def test_balanced_loss_refuses_at_once() -> None:
    model, _ = pair()
    losses, params = model(batches()[0]), list(model.parameters())
    with pytest.raises(ValueError, match="apply="):
        mtlkernels.balanced_loss(losses, params, PCGrad(), apply="other")
    with pytest.raises(TypeError, match="params is a Linear"):
        mtlkernels.balanced_loss(losses, model.heads[0], PCGrad())
    with pytest.raises(TypeError):
        mtlkernels.balanced_loss(losses, params, LossMethod)
