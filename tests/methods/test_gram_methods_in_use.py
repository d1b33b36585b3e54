"""Every registered Gram method on what steps really bring: rounding, saved state, wrong input."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
from gram_methods import DEGREE, GRAM_METHODS, TWO_TASKS, losses_of, tasks_for, weights_of
from hard_grams import random_rows
from torch import Tensor

import mtlkernels
from mtlkernels import (
    AvgNorm,
    GradNorm,
    LogLosses,
    Normalized,
    PCGrad,
    Preferred,
    Status,
    UPGrad,
    ops,
    reference,
)
from mtlkernels.reference.noise import RIDGE

pytestmark = pytest.mark.usefixtures("one_thread")

every_name = pytest.mark.parametrize("name", GRAM_METHODS)
OF_MANY = [name for name in GRAM_METHODS if name not in TWO_TASKS]
of_many = pytest.mark.parametrize("name", OF_MANY)


# -------------------------------------------------------------------- nearly dependent gradients


@of_many
@pytest.mark.parametrize("kind", ["opposed", "parallel", "dependent"])
def test_weights_do_not_run_away_on_float32_gradients(name: str, kind: str) -> None:
    """Little may be left of nearly cancelling gradients. A weight counts as the length it gives its
    gradient, in units of the answer's own scale (|g|, or 1 for degree 0) or of the direction. What
    needs longer ones than 1 / sqrt(ridge) is flagged, and bounded by that; a fair answer without a
    solution has a ridge of its own, r, and weights of r^(-alpha / (1 + alpha))."""
    bound = 2 / RIDGE**0.5
    for delta in (1e-2, 1e-3, 3e-4, 1e-4, 1e-5, 0.0):
        for seed in range(4):
            g, h, e = torch.randn(3, 2048, generator=torch.Generator().manual_seed(seed))
            G = {
                "opposed": lambda g=g, h=h, e=e, d=delta: [g, -g + d * e, h],
                "parallel": lambda g=g, h=h, e=e, d=delta: [g, g + d * e, h, h - d * g],
                "dependent": lambda g=g, h=h, e=e, d=delta: [g, h, g + h + d * e, 0.5 * (g - h)],
            }[kind]()
            K = ops.gram(G, len(G))
            method = GRAM_METHODS[name](len(G))
            w = weights_of(method, K)
            lengths = w.abs() * K.diagonal().sqrt()
            unit = float(K.diagonal().max().sqrt()) ** DEGREE.get(name, 1)
            unit = max(unit, float((w @ K @ w).clamp_min(0).sqrt()))
            assert lengths.isfinite().all()
            assert lengths.max() <= bound * unit


NOISY = {
    "mgda": (),
    "imgrad": (0.8, 1, 0),
    "cagrad": (0.4, 0, False),
    "dualproj": (torch.empty(0, dtype=torch.float64),),
    "upgrad": (torch.empty(0, dtype=torch.float64),),
    "fairgrad": (2.0, None, math.inf),
    "equiangular": (0,),
    "aligned": (torch.tensor([1.0, 0, 0], dtype=torch.float64), 2, False),
}


@pytest.mark.parametrize("op", NOISY)
def test_native_and_reference_agree_on_what_is_rounding(op: str) -> None:
    """Nearly opposite gradients. Both take the same way out."""
    flags = set()
    for delta, seed in itertools.product((0.1, 1e-3, 1e-5, 1e-7, 0.0), range(8)):
        g, h, e = random_rows(3, 2048, seed).float()
        K = ops.gram([g, -g + delta * e, h], 3)
        got, status = getattr(ops, op)(K, *NOISY[op])
        want, expected = getattr(reference, op)(K, *NOISY[op])
        assert torch.equal(status, expected)
        # as directions: of opposite gradients any equal weights are as good
        difference = got - want
        error = (difference @ K @ difference).abs().sqrt()
        assert error <= 1e-5 * (want * K.diagonal().sqrt()).abs().max()
        flags |= set(status.tolist())
    assert flags - {0}, "no gradients were near enough to opposite"


# --------------------------------------------------------------------------------------- state


def run(method: mtlkernels.GramMethod, T: int, first: int, steps: int = 3) -> list[Tensor]:
    answers = []
    for step in range(first, first + steps):
        G = random_rows(T, 9, seed=step) * torch.linspace(0.2, 5, T, dtype=torch.float64)[:, None]
        answers.append(method(G @ G.T, 1 + random_rows(1, T, seed=step)[0].abs()))
    return answers


@every_name
def test_state_goes_into_a_fresh_object_and_into_a_copy(name: str) -> None:
    T = tasks_for(name, 4)
    method, fresh = GRAM_METHODS[name](T), GRAM_METHODS[name](T)
    before = run(method, T, 0)
    fresh.load_state_dict(method.state_dict())
    copied = copy.deepcopy(method)
    expected = run(method, T, 3)
    for other in (fresh, copied):
        for got, want in zip(run(other, T, 3), expected, strict=True):
            assert torch.equal(got, want)
    if method.keeps == "nothing" and name != "AvgNorm-ema":
        assert not method.state_dict()
        again = run(method, T, 0)
        assert all(torch.equal(a, b) for a, b in zip(again, before, strict=True))


@of_many
def test_a_change_of_tasks_is_told_where_it_matters(name: str) -> None:
    method = GRAM_METHODS[name](3)
    run(method, 3, 0)
    kept = [*method.state_dict().values(), getattr(method, "weights", None)]
    kept.append(getattr(method, "preference", None))
    if any(isinstance(x, Tensor) and x.dim() and len(x) == 3 for x in kept):
        with pytest.raises(ValueError, match=r"(3|4) tasks"):
            run(method, 4, 0)
    else:
        assert run(method, 4, 0)[0].shape == (4,)


# ----------------------------------------------------------------------------------- bad input


@of_many
@pytest.mark.parametrize(
    ("gram", "word"),
    [
        (torch.zeros(2, 3, dtype=torch.float64), "square"),
        (torch.zeros(3, dtype=torch.float64), "square"),
        (torch.zeros(3, 3, dtype=torch.int64), "float64"),
        (torch.zeros(3, 3, dtype=torch.complex64), "float64"),
    ],
    ids=["wide", "vector", "integer", "complex"],
)
def test_a_gram_that_is_none_is_refused(name: str, gram: Tensor, word: str) -> None:
    with pytest.raises(RuntimeError, match=word):
        GRAM_METHODS[name](len(gram))(gram, losses_of(len(gram)))


@of_many
def test_losses_of_other_tasks_are_refused(name: str) -> None:
    G = random_rows(3, 5, seed=0)
    with pytest.raises(ValueError, match="4 losses were given for 3 tasks"):
        mtlkernels.aggregate([[g] for g in G], GRAM_METHODS[name](3), losses_of(4))


def test_losses_of_other_tasks_are_refused_by_the_methods_that_use_them() -> None:
    K = torch.eye(3, dtype=torch.float64)
    for method in (LogLosses(UPGrad()), Preferred(GradNorm(), [1, 2, 3]), Normalized(GradNorm())):
        with pytest.raises(ValueError, match="4 losses were given for 3 tasks"):
            method(K, losses_of(4))
    with pytest.raises(RuntimeError, match="losses must be a contiguous float64 vector of 3"):
        GradNorm()(K, losses_of(4))


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan])
def test_a_loss_that_has_no_logarithm_is_named(bad: float) -> None:
    losses = torch.tensor([1.0, bad, 2.0], dtype=torch.float64)
    for method in (LogLosses(PCGrad()), LogLosses(AvgNorm())):
        weights = method(torch.eye(3, dtype=torch.float64), losses)
        assert weights.isnan().all() if math.isnan(bad) else weights[1] == 0
        assert [flag & Status.INVALID_LOSS for flag in method.status.tolist()] == [0, 32, 0]


@of_many
def test_more_tasks_than_native_solvers_take_are_served_and_said(name: str) -> None:
    G = random_rows(70, 100, seed=0)
    with pytest.warns(UserWarning, match="70 tasks are more than the 64"):
        weights = GRAM_METHODS[name](70)(G @ G.T, losses_of(70))
    assert weights.shape == (70,)
    assert weights.isfinite().all()
