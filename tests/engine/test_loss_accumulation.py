"""optimizer.loss(losses, accumulate=k): task gradients of k backward passes are combined once."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor
from trunk_and_heads import Model

import mtlkernels
from mtlkernels import MTLOptimizer

METHODS = ["pcgrad", "upgrad", "nashmtl", "imtlg", "graddrop", "moco"]


def pair(method: str = "pcgrad", lr: float = 0.1, **options: Any) -> tuple[Model, MTLOptimizer]:
    torch.manual_seed(0)
    model = Model().double()
    return model, MTLOptimizer(torch.optim.SGD(model.parameters(), lr=lr), method, **options)


def parts(count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(6 * count, 5, dtype=torch.float64, generator=generator)
    return list(x.chunk(count))


def assert_close(model: Model, other: Model, factor: float = 1.0) -> None:
    for param, wanted in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(param.grad, factor * wanted.grad)


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("method", METHODS)
def test_equals_one_large_batch(method, count) -> None:
    """Divided or not, the method sees the mean; .grad is as long as the factors add up to."""
    (model, optimizer), (large, whole) = pair(method, accumulate=count), pair(method)
    undivided, same = pair(method)
    for _ in range(2):
        for x in parts(count):
            assert model.trunk[0].weight.grad is None
            (optimizer.loss(model(x)) / count).backward()
            same.loss(undivided(x), accumulate=count).backward()
        wanted = whole.backward(large(torch.cat(parts(count))))
        assert_close(model, large)
        assert_close(undivided, large, count)
        for report in (optimizer.report, same.report):
            torch.testing.assert_close(report.losses, wanted.losses)
            if wanted.weights is not None:
                torch.testing.assert_close(report.weights, wanted.weights)
        for one in (optimizer, same, whole):
            one.zero_grad()


@pytest.mark.parametrize("method", METHODS)
def test_equals_backward_with_accumulate(method) -> None:
    (model, optimizer), (other, direct) = pair(method), pair(method)
    for x in parts(4):
        (optimizer.loss(model(x), accumulate=4) / 4).backward()
        losses = {name: loss / 4 for name, loss in other(x).items()}
        direct.backward(losses, accumulate=True)
    report = direct.combine()
    for param, wanted in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(param.grad, wanted.grad)
    torch.testing.assert_close(optimizer.report.losses, report.losses)


def test_a_factor_of_its_own_for_each_micro_batch() -> None:
    """As where the last one is smaller: the sum is that of the weighted losses."""
    (model, optimizer), (other, direct) = pair("nashmtl"), pair("nashmtl")
    for x, share in zip(parts(2), (0.75, 0.25), strict=True):
        (1024 * share * optimizer.loss(model(x), accumulate=2)).backward()
        direct.backward({n: share * v for n, v in other(x).items()}, accumulate=True)
    direct.combine()
    assert_close(model, other, 1024)


def test_without_accumulate_each_backward_combines() -> None:
    (model, optimizer), (other, direct) = pair(), pair()
    for x in parts(2):
        (optimizer.loss(model(x)) / 2).backward()
        direct.backward(other(x), scaler=torch.tensor(0.5))
    assert_close(model, other)


def test_step_combines_what_is_left_over_and_warns_once() -> None:
    (model, optimizer), (other, direct) = pair(accumulate=4), pair()
    for rounds in range(2):
        for x in parts(2):
            (optimizer.loss(model(x)) / 4).backward()
            losses = {name: loss / 4 for name, loss in other(x).items()}
            direct.backward(losses, accumulate=True)
        direct.combine()
        if rounds:
            optimizer.step()
        else:
            with pytest.warns(UserWarning, match="waited for more, as accumulate= says"):
                optimizer.step()
        direct.step()
        assert_close(model, other)
        for param, wanted in zip(model.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(param, wanted)
        for one in (optimizer, direct):
            one.zero_grad()


def test_zero_grad_drops_what_waits() -> None:
    (model, optimizer), (other, direct) = pair(accumulate=2), pair()
    optimizer.loss(model(torch.ones(3, 5).double())).backward()
    optimizer.zero_grad()
    optimizer.step()  # nothing waits, so nothing is said
    for x in parts(2):
        (optimizer.loss(model(x)) / 2).backward()
    direct.backward(other(torch.cat(parts(2))))
    assert_close(model, other)


def test_a_window_that_ends_early() -> None:
    (model, optimizer), (other, direct) = pair(accumulate=4), pair()
    first, last = parts(2)
    (optimizer.loss(model(first)) / 2).backward()
    (optimizer.loss(model(last), accumulate=1) / 2).backward()
    direct.backward(other(torch.cat([first, last])))
    assert_close(model, other)
    optimizer.step()
    optimizer.zero_grad()
    optimizer.loss(model(first)).backward()
    assert optimizer.combine() is optimizer.report
    optimizer.step()


@pytest.mark.parametrize("keyword", [False, True])
def test_a_closure_adds_the_last_micro_batch_inside_step(keyword) -> None:
    """As Lightning's automatic optimisation does; and a window of one, inside the closure too."""
    (model, optimizer), (other, direct) = pair(accumulate=2), pair()
    first, last = parts(2)

    def closure() -> Tensor:
        loss = optimizer.loss(model(last)) / 2
        loss.backward()
        return loss.detach()

    (optimizer.loss(model(first)) / 2).backward()
    optimizer.step(closure=closure) if keyword else optimizer.step(closure)
    direct.backward(other(torch.cat([first, last])))
    direct.step()
    for param, wanted in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(param, wanted)
    optimizer.zero_grad()
    with pytest.warns(UserWarning, match="of 1 backward passes waited"):
        optimizer.step(closure)
    assert model.trunk[0].weight.grad is not None


def test_copies_combine_at_their_steps_too() -> None:
    model, optimizer = pair(accumulate=2)
    optimizer.loss(model(parts(1)[0])).backward()
    for copied in (copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))):
        twin, other = copied((model, optimizer))
        other.zero_grad()
        other.loss(twin(parts(1)[0])).backward()
        with pytest.warns(UserWarning, match="waited for more"):
            other.step()


def test_an_absent_task_in_one_micro_batch() -> None:
    (model, optimizer), (other, direct) = pair(accumulate=2), pair()
    for i, x in enumerate(parts(2)):
        for one, step in ((model, "loss"), (other, "direct")):
            losses = one(x)
            if i:
                losses["task 1"] = None
            if step == "loss":
                (optimizer.loss(losses) / 2).backward()
            else:
                halves = {k: None if v is None else v / 2 for k, v in losses.items()}
                direct.backward(halves, accumulate=True)
    direct.combine()
    assert_close(model, other)


def test_wrong_counts_and_methods_are_refused_at_once() -> None:
    for count in (0, -1, True, 1.5, "2"):
        with pytest.raises(ValueError, match="accumulate="):
            pair(accumulate=count)
        with pytest.raises(ValueError, match="accumulate="):
            pair()[1].loss([torch.ones(())], accumulate=count)
    for method, options in (
        ("uw", {}),
        ("pcgrad", {"every": 2}),
        ("pcgrad", {"apply": "backward"}),
    ):
        chosen = mtlkernels.UW(3) if method == "uw" else method
        with pytest.raises(ValueError, match="adds up the task gradients"):
            pair(chosen, accumulate=2, **options)
    model, optimizer = pair()
    z = model.trunk(parts(1)[0])
    losses = [head(z).square().mean() for head in model.heads]
    with pytest.raises(ValueError, match="features="):
        optimizer.loss(losses, features=z, accumulate=2)


def test_the_two_ways_to_accumulate_do_not_mix() -> None:
    model, optimizer = pair(accumulate=2)
    x = parts(1)[0]
    optimizer.loss(model(x)).backward()
    with pytest.raises(ValueError, match="wait"):
        optimizer.backward(model(x), accumulate=True)
    with pytest.raises(ValueError, match="have not been combined"):
        optimizer.backward(model(x))
    optimizer.zero_grad()
    optimizer.backward(model(x), accumulate=True)
    with pytest.raises(ValueError, match="wait"):
        optimizer.loss(model(x)).backward()


def test_a_grad_scaler_beside_accumulation() -> None:
    (model, optimizer), (other, direct) = pair(accumulate=2), pair()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for x in parts(2):
        scaler.scale(optimizer.loss(model(x)) / 2).backward()
    scaler.step(optimizer)
    scaler.update()
    direct.backward(other(torch.cat(parts(2))))
    direct.step()
    for param, wanted in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(param, wanted)
