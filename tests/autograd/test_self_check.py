"""The first-step self-check: graphs that do not bear several backward passes are found out."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from broken_layers import CHANGING, WRITING, Middle, Net, hooked_once
from torch import Tensor, nn
from torch._functorch import config
from torch.utils.checkpoint import checkpoint

import mtlkernels
from mtlkernels import DWA, SI, GradNorm, GradVac, MTLOptimizer, PCGrad
from mtlkernels.autograd.trial import SelfCheckError

BROKEN = {**WRITING, **CHANGING}


def wrapped(net: nn.Module, method: Any = "pcgrad", **options: Any) -> MTLOptimizer:
    return MTLOptimizer(torch.optim.SGD(net.named_parameters(), lr=0.1), method, **options)


def batch() -> Tensor:
    return torch.randn(8, 4, generator=torch.Generator().manual_seed(1))


def grads(net: nn.Module) -> list[Tensor | None]:
    return [None if p.grad is None else p.grad.clone() for p in net.parameters()]


def set_grads(net: nn.Module) -> None:
    for i, param in enumerate(net.parameters()):
        param.grad = torch.full_like(param, i) if i % 2 else None


@pytest.mark.parametrize("middle", WRITING.values(), ids=list(WRITING))
def test_what_writes_to_grad_by_itself_is_an_error(middle: Middle) -> None:
    net = Net(middle)
    set_grads(net)
    before, kept = grads(net), [p.grad for p in net.parameters()]
    wanted = r"\.grad of 2 of 10 parameters \(second\.weight, second\.bias\).*features=.*check="
    with pytest.raises(RuntimeError, match=wanted):
        wrapped(net).backward(net(batch()))
    assert all(p.grad is g for p, g in zip(net.parameters(), kept, strict=True))
    torch.testing.assert_close(grads(net), before)


@pytest.mark.parametrize("middle", CHANGING.values(), ids=list(CHANGING))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_passes_that_change_the_next_one_are_an_error(middle: Middle, dtype: torch.dtype) -> None:
    net = Net(middle).to(dtype)
    set_grads(net)
    before = grads(net)
    wanted = r"do not add up .* \(.*first\.(weight|bias).*\).*features=.*check="
    with pytest.raises(RuntimeError, match=wanted):
        wrapped(net).backward(net(batch().to(dtype)))
    torch.testing.assert_close(grads(net), before)


@pytest.mark.parametrize("method", [GradVac(), GradNorm()], ids=lambda m: type(m).__name__)
def test_the_state_of_the_method_stays_too(method: Any) -> None:
    net = Net(hooked_once)
    before = copy.deepcopy(method.state_dict())
    with pytest.raises(SelfCheckError):
        wrapped(net, method).backward(net(batch()))
    assert method.state_dict().keys() == before.keys()
    torch.testing.assert_close(method.state_dict(), before)


def test_accumulated_gradients_are_checked_too() -> None:
    net = Net(hooked_once)
    optimizer = wrapped(net)
    with pytest.raises(SelfCheckError):
        optimizer.backward(net(batch()), accumulate=True)
    with pytest.raises(ValueError, match="nothing was accumulated"):
        optimizer.combine()


def test_parameters_without_names_go_by_position_and_shape() -> None:
    net = Net(hooked_once)
    optimizer = MTLOptimizer(torch.optim.SGD(net.parameters(), lr=0.1), "pcgrad")
    with pytest.raises(SelfCheckError, match=r"parameter 1 of shape \(6,\)"):
        optimizer.backward(net(batch()))


def test_many_parameters_are_named_in_part() -> None:
    layers = nn.Sequential(*(nn.Linear(6, 6) for _ in range(5)))
    net = Net(lambda x, _: WRITING["a backward inside"](x, layers))
    net.layers = layers
    with pytest.raises(SelfCheckError, match=r"10 of 20 parameters \(.*layers\.1\.bias and 6 more"):
        wrapped(net).backward(net(batch()))


@pytest.mark.parametrize("middle", BROKEN.values(), ids=list(BROKEN))
def test_check_false_leaves_it_out(middle: Middle) -> None:
    net = Net(middle)
    if middle is WRITING["a backward inside, once"]:
        return  # which fails by itself
    wrapped(net, check=False).backward(net(batch()))
    assert net.heads[0].weight.grad is not None


def test_the_function_checks_where_it_is_asked_to() -> None:
    net = Net(hooked_once)
    params = list(net.parameters())
    with pytest.raises(SelfCheckError):
        mtlkernels.backward(net(batch()), params, PCGrad(), check=True)
    mtlkernels.backward(net(batch()), params, PCGrad())


@pytest.mark.parametrize("middle", BROKEN.values(), ids=list(BROKEN))
def test_one_loss_and_loss_methods_take_one_pass(middle: Middle) -> None:
    for method, tasks in (("pcgrad", 1), (SI(), 2), (DWA(), 2)):
        net, same = Net(middle, tasks), Net(middle, tasks)
        torch.manual_seed(3)
        report = wrapped(net, method).backward(net(batch()))
        torch.manual_seed(3)
        losses = torch.stack(same(batch()))
        (losses * report.weights.to(losses)).sum().backward()
        torch.testing.assert_close(grads(net), grads(same))


def recomputed(x: Tensor, layer: nn.Module) -> Tensor:
    def run(x: Tensor) -> Tensor:
        return nn.functional.dropout(torch.tanh(layer(x)), 0.3)

    return checkpoint(run, x, use_reentrant=False)


class InPlace(torch.autograd.Function):
    """Turns the gradient round in the memory that it was handed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.neg_()


FINE: dict[str, Middle] = {
    "plain": lambda x, layer: layer(x),
    "dropout": lambda x, layer: nn.functional.dropout(layer(x), 0.5),
    "checkpoint": recomputed,
    "batch norm": lambda x, layer: nn.functional.batch_norm(layer(x), None, None, training=True),
    "all dead": lambda x, layer: torch.relu(layer(x) - 100.0),
    "a gradient turned round in place": lambda x, layer: InPlace.apply(layer(x)),
    "used twice": lambda x, layer: layer(torch.tanh(layer(x))),
    "detached": lambda x, layer: x.detach() + layer(x.detach()),
    "a hook that scales": lambda x, layer: with_hook(layer(x)),
}


def with_hook(z: Tensor) -> Tensor:
    z.register_hook(lambda grad: 0.5 * grad)
    return z


@pytest.mark.parametrize("middle", FINE.values(), ids=list(FINE))
@pytest.mark.parametrize(
    "options",
    [{}, {"collect": "batched"}, {"rows_dtype": torch.bfloat16}, {"scaler": True}],
    ids=["loop", "batched", "kept in 16 bits", "scaled"],
)
def test_sound_graphs_pass_and_get_the_same(middle: Middle, options: dict[str, Any]) -> None:
    if options.get("collect") == "batched" and middle is recomputed:
        pytest.skip("torch batches no dropout")
    options = dict(options)
    given = {"scaler": torch.tensor(2.0**10)} if options.pop("scaler", None) else {}
    found = []
    for check in (True, False):
        net = Net(middle, 3)
        optimizer = wrapped(net, check=check, **options)
        for _ in range(2):
            torch.manual_seed(5)
            losses = net(batch())
            optimizer.backward(losses, **given)
        found.append(grads(net))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)


def once(z: Tensor) -> None:
    handle = z.register_hook(lambda grad: (handle.remove(), 2 * grad)[1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("whole", [False, True], ids=["autocast", "parameters too"])
def test_16_bits_raise_no_false_alarm_but_a_true_one(dtype: torch.dtype, whole: bool) -> None:
    for seed in range(5):
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for width in (8, *[32] * 9):
            layers += [nn.Linear(width, 32), nn.LayerNorm(32), nn.ReLU()]
        trunk = nn.Sequential(*layers)
        heads = nn.ModuleList(nn.Linear(32, 1) for _ in range(6))
        model = nn.ModuleList([trunk, heads])
        x = torch.randn(64, 8)
        if whole:
            model, x = model.to(dtype), x.to(dtype)
        for hook in (False, True):
            with torch.autocast("cpu", dtype=dtype, enabled=not whole):
                z = trunk(x)
                losses = [
                    3**t * (head(z) - t).float().square().mean() for t, head in enumerate(heads)
                ]
            optimizer = wrapped(model)
            if not hook:
                optimizer.backward(losses, scaler=torch.tensor(8.0))
                continue
            once(z)
            with pytest.raises(SelfCheckError):
                optimizer.backward(losses, scaler=torch.tensor(8.0))


class InBFloat16(torch.autograd.Function):
    """A linear layer that looks like float32 from outside."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return (x.bfloat16() @ weight.bfloat16().t()).float()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = (saved.bfloat16() for saved in ctx.saved_tensors)
        grad = grads[0].bfloat16()
        return (grad @ weight).float(), (grad.t() @ x).float()


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")  # by an import in it
@pytest.mark.parametrize("compiled", [False, True])
def test_16_bits_that_the_graph_hides_raise_no_false_alarm(compiled: bool) -> None:
    torch.manual_seed(0)
    weights = nn.ParameterList(torch.randn(32, 32) / 6 for _ in range(6))
    model = nn.ModuleList([nn.Linear(8, 32), weights, nn.Linear(32, 3)])

    def inside(x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=compiled):
            z = model[0](x)
            for weight in weights:
                z = z + (z @ weight.t() if compiled else InBFloat16.apply(z, weight)).relu()
        return z.float()

    run = torch.compile(inside, backend="aot_eager") if compiled else inside
    for hook in (False, True):
        with config.patch(donated_buffer=False):
            z = run(torch.randn(32, 8))
        losses = [10**t * (model[2](z)[:, t] - t).square().mean() for t in range(3)]
        if not hook:
            wrapped(model).backward(losses)
            continue
        once(z)
        with pytest.raises(SelfCheckError):
            wrapped(model).backward(losses)


def test_a_hook_that_clips_is_an_error_that_says_where_to_clip() -> None:
    net = Net()
    for param in net.parameters():
        param.register_hook(lambda grad: grad.clamp(-1e-3, 1e-3))
    with pytest.raises(SelfCheckError, match=r"clip \.grad after backward instead"):
        wrapped(net).backward(net(batch()))


@pytest.mark.parametrize("method", ["pcgrad", "famo"])
@pytest.mark.parametrize("check", [False, True])
def test_a_reentrant_checkpoint_is_an_error_that_says_what_to_set(method: str, check: bool) -> None:
    net = Net(lambda z, layer: checkpoint(layer, z, use_reentrant=True))
    with pytest.raises(ValueError, match=r"set use_reentrant=False; .*gradient_checkpointing_kw"):
        wrapped(net, method, check=check).backward(net(batch()))
    assert all(grad is None for grad in grads(net))


def test_gradients_that_are_rounding_alone_raise_no_false_alarm() -> None:
    """Of a bias in front of a batch normalisation, and of opposite losses."""
    for seed in range(5):
        torch.manual_seed(seed)
        trunk = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
                for _ in range(4)
            )
        )
        z = trunk(torch.randn(4, 4, 6, 6))
        loss = z.square().mean()
        wrapped(trunk).backward([loss * 3, -3 * loss, z.mean()])


def test_what_one_task_alone_goes_through_may_be_run_once() -> None:
    """A fused loss that overwrites, or a hook that removes itself, in a head."""
    net = Net()
    net.extra = nn.Linear(5, 5)
    z = net.features(batch())
    first = CHANGING["overwritten"](z, net.heads[0]).square().mean()
    second = hooked_once(z, net.extra).square().mean()
    wrapped(net).backward([first, second])


def test_post_accumulate_hooks_do_not_run_and_tensor_hooks_run_once_more() -> None:
    net = Net()
    ran: list[str] = []
    for param in net.parameters():
        param.register_post_accumulate_grad_hook(lambda _: ran.append("post"))
    net.first.weight.register_hook(lambda _: ran.append("first"))
    net.heads[0].weight.register_hook(lambda _: ran.append("head"))
    optimizer = wrapped(net)
    optimizer.backward(net(batch()))
    assert sorted(ran) == ["first"] * 3 + ["head"]
    ran.clear()
    optimizer.backward(net(batch()))
    assert sorted(ran) == ["first"] * 2 + ["head"]


class Counted(nn.Module):
    """Counts the backward passes through it."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def forward(self, x: Tensor, layer: nn.Module) -> Tensor:
        z = layer(x)

        def hook(_: Tensor) -> None:
            self.count += 1

        z.register_hook(hook)
        return z

    def taken(self) -> int:
        count, self.count = self.count, 0
        return count


def test_one_more_pass_is_made_in_the_first_step_and_where_something_new_is_reached() -> None:
    counted = Counted()
    net = Net(counted, 3)
    optimizer = wrapped(net)
    passes = []
    for tasks in ("ab", "ab", "ba", "abc", "ab", "bc", "abc", "c", "abc"):
        found = dict(zip("abc", net(batch()), strict=True))
        optimizer.backward({task: found[task] for task in tasks})
        passes.append(counted.taken() - len(tasks))
    assert passes == [1, 0, 0, 1, 0, 0, 0, 0, 0]


def test_parameters_that_are_reached_later_are_checked_then() -> None:
    """A layer that comes into use, and one that is no longer frozen."""
    net = Net()
    net.extra = nn.Linear(5, 5)
    optimizer = wrapped(net)

    def losses(extra: bool, middle: Callable[[Tensor, nn.Module], Tensor]) -> list[Tensor]:
        z = net.features(batch())
        return net.of_features(middle(z, net.extra) if extra else z)

    for _ in range(3):
        optimizer.backward(losses(False, hooked_once))
    optimizer.backward(losses(True, lambda x, layer: layer(x)))  # reaches it for the first time
    with pytest.raises(SelfCheckError):
        optimizer.backward(losses(True, hooked_once))


def test_a_step_that_is_not_finite_is_checked_again() -> None:
    net = Net(hooked_once)
    optimizer = wrapped(net)
    scale = torch.tensor(float("inf"))
    for _ in range(3):
        optimizer.backward(net(batch()), scaler=scale)
    with pytest.raises(SelfCheckError):
        optimizer.backward(net(batch()))


def test_a_copy_and_what_was_pickled_are_checked_anew() -> None:
    counted = Counted()
    net = Net(counted)
    optimizer = wrapped(net)
    optimizer.backward(net(batch()))
    file = io.BytesIO()
    torch.save(optimizer, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    for other in (copy.deepcopy((net, optimizer)), (None, loaded)):
        model, again = other
        assert again._mtl.check is not None
        if model is not None:
            model.middle.taken()
            again.backward(model(batch()))
            assert model.middle.taken() == 3


def test_the_graph_is_freed_or_kept_as_without_a_check() -> None:
    net = Net()
    losses = net(batch())
    wrapped(net).backward(losses, retain_graph=True)
    sum(losses).backward()
    losses = net(batch())
    mtlkernels.backward(losses, list(net.parameters()), PCGrad(), check=True)
    with pytest.raises(RuntimeError, match="second time"):
        sum(losses).backward()
