"""What all loss methods have in common: bad losses, state, the number of tasks, torch.compile."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from loss_methods import MAKE, batches, evaluate, every_method, run
from no_read_back import NoReadBack
from torch import Tensor

from mtlkernels import (
    DWA,
    FAMO,
    IGB,
    RLW,
    SLAW,
    STCH,
    UW,
    UWSO,
    GO4Align,
    Status,
)
from mtlkernels.methods import base

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", MAKE)
def test_a_loss_that_is_not_finite_poisons_the_step_and_leaves_the_state(name, value) -> None:
    method, twin = MAKE[name](3), MAKE[name](3)
    losses = batches(3, 6)
    run(method, losses[:3])
    run(twin, losses[:3])
    bad = losses[3].clone()
    bad[1] = value
    scalar, weights = evaluate(method, bad)
    assert scalar.isnan()
    assert weights.isnan().all()
    assert method.status[[0, 2]].tolist() == [0, 0]
    assert int(method.status[1]) & Status.NON_FINITE
    if isinstance(method, FAMO):
        method.update(losses[4])
    if isinstance(method, RLW):
        twin.step.add_(1)
    for (a, b), (c, d) in zip(run(method, losses[3:]), run(twin, losses[3:]), strict=True):
        assert torch.equal(a, c)
        assert torch.equal(b, d)


@every_method
def test_state_survives_a_round_trip_into_a_fresh_object(make) -> None:
    losses = batches(3, 10)
    method, fresh = make(3), make(3)
    run(method, losses[:5])
    fresh.load_state_dict(copy.deepcopy(method.state_dict()))
    twin = copy.deepcopy(method)
    for other in (fresh, twin):
        for (a, b), (c, d) in zip(
            run(other, losses[5:]), run(copy.deepcopy(method), losses[5:]), strict=True
        ):
            assert torch.equal(a, c)
            assert torch.equal(b, d)
    untouched = make(3)
    untouched.load_state_dict(make(3).state_dict())
    run(untouched, losses[:1])


def test_famo_updates_after_a_round_trip() -> None:
    method, fresh = FAMO(), FAMO()
    evaluate(method, torch.tensor([1.0, 2.0]))
    fresh.load_state_dict(method.state_dict())
    for m in (method, fresh):
        m.update(torch.tensor([0.5, 1.9]))
    assert torch.equal(method.xi, fresh.xi)
    assert int(fresh.steps) == 1


@pytest.mark.parametrize(
    "name", ["uw", "imtll", "dwa", "slaw", "stch", "stch-nadir", "igb", "famo", "go4align"]
)
def test_another_number_of_tasks_is_told(name: str) -> None:
    method = MAKE[name](3)
    evaluate(method, torch.ones(3))
    with pytest.raises(ValueError, match=r"3 tasks.*4 losses"):
        evaluate(method, torch.ones(4))


@pytest.mark.parametrize("name", ["si", "gls", "rlw", "uwso"])
def test_without_state_the_number_of_tasks_is_free(name: str) -> None:
    method = MAKE[name](3)
    for T in (3, 5, 1):
        assert evaluate(method, torch.ones(T))[1].shape == (T,)


@every_method
def test_nothing_is_read_back(make) -> None:
    method = make(3)
    losses = batches(3, 6)
    with NoReadBack():
        run(method, losses)


@every_method
def test_float32_losses_give_the_same_in_float64(make) -> None:
    losses = batches(3, 5).float()
    for (a, b), (c, d) in zip(run(make(3), losses), run(make(3), losses.double()), strict=True):
        assert a.dtype == torch.float64
        assert torch.equal(a, c)
        torch.testing.assert_close(b.double(), d, rtol=1e-7, atol=1e-37)


@pytest.mark.parametrize("name", ["uw", "rlw", "dwa", "famo"])
def test_compiles_to_one_graph(name: str) -> None:
    losses = batches(3, 4)
    plain, method = MAKE[name](3), MAKE[name](3)
    evaluate(plain, losses[0])
    evaluate(method, losses[0])
    torch._dynamo.reset()
    compiled = torch.compile(method, backend="aot_eager", fullgraph=True)
    for row in losses[1:]:
        want, got = evaluate(plain, row), evaluate(compiled, row)
        for a, b in zip(want, got, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=0)


@every_method
@pytest.mark.parametrize(
    "losses",
    [torch.ones(()), torch.ones(2, 2), torch.ones(0), torch.ones(3, dtype=torch.int64)],
    ids=["0-D", "2-D", "none", "int"],
)
def test_losses_that_are_none_are_refused(make, losses: Tensor) -> None:
    with pytest.raises(ValueError, match="floating-point vector"):
        make(3)(losses)


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: UW(0), "num_tasks=0"),
        (lambda: UW(2, init=math.nan), "init=nan"),
        (lambda: UW(2, factor=0.0), "factor=0.0"),
        (lambda: UWSO(-1.0), "temperature=-1.0"),
        (lambda: DWA(0.0), "temperature=0.0"),
        (lambda: DWA(window=0), "window=0"),
        (lambda: DWA(reduction="max"), "reduction='max'"),
        (lambda: RLW("max"), "reduction='max'"),
        (lambda: SLAW(1.0), "beta=1.0"),
        (lambda: SLAW(eps=0.0), "eps=0.0"),
        (lambda: STCH(0.0), "mu=0.0"),
        (lambda: STCH(warmup=0), "warmup=0"),
        (lambda: STCH(warmup=4, average=5), "average=5"),
        (lambda: STCH(form="square"), "form='square'"),
        (lambda: STCH(nadir=[1.0, 0.0]), "nadir"),
        (lambda: STCH(form="linear", reference=math.inf), "reference=inf"),
        (lambda: IGB(average=0), "average=0"),
        (lambda: FAMO(lr=-1.0), "lr=-1.0"),
        (lambda: FAMO(gamma=math.inf), "gamma=inf"),
        (lambda: FAMO(min_losses=[math.nan]), "min_losses"),
        (lambda: GO4Align(0), "groups=0"),
        (lambda: GO4Align(eta=-1.0), "eta=-1.0"),
    ],
)
def test_wrong_arguments_are_named(make, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        make()


def test_given_numbers_of_another_number_of_tasks_are_told() -> None:
    with pytest.raises(ValueError, match="min_losses has 2 numbers for 3 losses"):
        FAMO(min_losses=[0.0, 0.0])(torch.ones(3))


def test_flags_are_those_of_status() -> None:
    assert base.NON_FINITE == Status.NON_FINITE
    assert base.INVALID_LOSS == Status.INVALID_LOSS
