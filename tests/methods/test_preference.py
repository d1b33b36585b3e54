"""`preference=`: one meaning and one validation in all methods that take it."""

from __future__ import annotations

import inspect
import math

import pytest
import torch
from hard_grams import random_rows
from torch import Tensor

from mtlkernels import CAGrad, GramMethod, LossMethod, Preferred
from mtlkernels.methods import METHODS

pytestmark = pytest.mark.usefixtures("one_thread")

TAKE = {
    name: cls
    for name, cls in METHODS.items()
    if "preference" in inspect.signature(cls.__init__).parameters
}
every_one = pytest.mark.parametrize("name", TAKE)


def made(name: str, preference: object) -> GramMethod | LossMethod:
    cls = TAKE[name]
    if cls is Preferred:
        return CAGrad() if preference is None else Preferred(CAGrad(), preference)
    return cls(preference=preference)


def answer(name: str, preference: object, G: Tensor) -> Tensor:
    method = made(name, preference)
    if isinstance(method, GramMethod):
        return method(G @ G.T)
    losses = G.square().sum(dim=1).requires_grad_()
    return torch.autograd.grad(method(losses), losses)[0]


def test_the_methods_that_take_it() -> None:
    assert TAKE.keys() >= {"preferred", "upgrad", "dualproj", "alignedmtl", "sdmgrad"}


@every_one
def test_equal_numbers_are_no_preference(name: str) -> None:
    G = random_rows(4, 9, seed=1)
    for zero in ([], [2]):
        G[zero] = 0
        want = answer(name, None, G)
        for value in (0.25, 1.0, 7.0):
            torch.testing.assert_close(answer(name, [value] * 4, G), want, rtol=1e-9, atol=1e-12)


@every_one
def test_only_ratios_count(name: str) -> None:
    G = random_rows(4, 9, seed=2)
    want = answer(name, [1.0, 2.0, 0.5, 3.0], G)
    assert not torch.allclose(want, answer(name, None, G))
    got = answer(name, [10.0, 20.0, 5.0, 30.0], G)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)


@every_one
@pytest.mark.parametrize(
    "wrong", [[1.0, -1.0], [0.0, 0.0], [math.nan, 1.0], [math.inf, 1.0], [], 2.0, [[1.0, 2.0]]]
)
def test_wrong_ones_are_refused_alike(name: str, wrong: object) -> None:
    with pytest.raises(ValueError, match=r"preference=.*at least 0 and not all 0"):
        made(name, wrong)


@every_one
def test_another_number_of_tasks_is_refused_alike(name: str) -> None:
    with pytest.raises(ValueError, match=r"preference has 3 numbers for 4 (tasks|losses)"):
        answer(name, [1.0, 2.0, 3.0], random_rows(4, 9, seed=3))
