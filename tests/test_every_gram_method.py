"""What holds for every registered Gram method: edge cases, symmetries, scale, state, bad input."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
from gram_methods import (
    BLIND,
    DEGREE,
    DRAWS,
    GRAM_METHODS,
    NO_DEGREE,
    TWO_TASKS,
    every_order,
    losses_of,
    tasks_for,
    weights_of,
)
from hard_grams import KINDS, hard_gram, random_rows
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import mtlkernels
from mtlkernels import (
    AvgNorm,
    GradNorm,
    LogLosses,
    MoDo,
    PCGrad,
    SDMGrad,
    Status,
    UPGrad,
    ops,
    reference,
)

pytestmark = pytest.mark.usefixtures("one_thread")

every_name = pytest.mark.parametrize("name", GRAM_METHODS)
OF_MANY = [name for name in GRAM_METHODS if name not in TWO_TASKS]
of_many = pytest.mark.parametrize("name", OF_MANY)
CROSS = (SDMGrad, MoDo)  # take products of two batches: a negative diagonal is no error


def direction(name: str, G: Tensor) -> Tensor:
    return G.T @ weights_of(GRAM_METHODS[name](len(G)), G @ G.T)


# ---------------------------------------------------------------------------------- edge cases
# Delivered direction for one task with gradient g, |g| = 13, and for three identical ones, as
# factors of g. What is not named has the factor 1 for one task, and 3 or, as a mean, 1 for three.

ALPHA = {"FairGrad": 2.0, "PIVRG": 2.0, "FairGrad-0.5": 0.5, "FairGrad-20": 20.0}
ONE_TASK = {
    "FixedWeights": 0.5,
    "CAGrad": 1.4,
    "CAGrad-0.9-square": 1.9 / 1.81,
    "CAGrad-1.5-sum": 1.0,
    "PerPart": 1.4,
    "Preferred": 2.8,
    "ClippedTasks": 1.4 * 3 / 13,
    "LogLosses": 0.5,
    "IMGrad": 1.8,
    "IMGrad-paper": 1.8,
    "IMGrad-square": 1.8 / 1.64,
    "Normalized": 1 / 13,
    "Normalized-CAGrad": 1.4 / 13,
    "AvgNorm-2.5": 2.5 / 13,
    "NashMTL": 1 / 13,
    "NashMTL-exact": 1 / 13,
    **{name: 169 ** (-a / (a + 1)) for name, a in ALPHA.items()},
}
MEANS = {
    *("Mean", "PCGrad-mean", "MGDA", "CRMOGM", "UPGrad", "DualProj", "IMTLG", "RandomWeights"),
    *("AlignedMTL-mean", "SDMGrad", "SDMGrad-slow", "MoDo", "NashMTL", "Normalized", "LogLosses"),
    *("CAGrad", "CAGrad-0.9-square", "Normalized-CAGrad", "PerPart", "Preferred", "ClippedTasks"),
    *("IMGrad", "IMGrad-paper", "IMGrad-square"),
}
IDENTICAL = {
    "AvgNorm": 9.0,
    "NashMTL-exact": math.sqrt(3) / 13,
    **{name: 3 * (3 * 169) ** (-a / (a + 1)) for name, a in ALPHA.items()},
}


@of_many
def test_one_task(name: str) -> None:
    g = torch.tensor([[3.0, -4.0, 12.0]], dtype=torch.float64)
    factor = ONE_TASK.get(name, 1.0)
    torch.testing.assert_close(direction(name, g), factor * g[0], rtol=1e-13, atol=0)


@of_many
def test_identical_gradients(name: str) -> None:
    g = torch.tensor([[3.0, -4.0, 12.0]], dtype=torch.float64)
    factor = IDENTICAL.get(name, ONE_TASK.get(name, 1.0) * (1 if name in MEANS else 3))
    got = direction(name, g.repeat(3, 1))
    torch.testing.assert_close(got, factor * g[0], rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", [n for n in OF_MANY if n != "RandomWeights"])
def test_opposite_gradients_cancel(name: str) -> None:
    g = torch.tensor([[3.0, -4.0, 12.0]], dtype=torch.float64)
    assert direction(name, torch.cat([g, -g])).abs().max() <= 1e-12


@pytest.mark.parametrize("name", [n for n in OF_MANY if n not in BLIND | DRAWS])
@pytest.mark.parametrize("zero", [0, 1, 3])
def test_a_zero_gradient_takes_no_part(name: str, zero: int) -> None:
    G = random_rows(4, 7, seed=3)
    G[zero] = 0
    others = [i for i in range(4) if i != zero]
    K = G @ G.T
    chosen, reduced = GRAM_METHODS[name](4), GRAM_METHODS[name](3)
    weights = weights_of(chosen, K, every_order(4))
    expected = weights_of(reduced, K[others][:, others], every_order(3))
    assert weights[zero] == 0
    # rounding is multiplied by each overshooting round of SDMGrad's default step
    tolerance = 1e-6 if name == "SDMGrad" else 1e-12
    torch.testing.assert_close(weights[others], expected, rtol=tolerance, atol=tolerance)
    assert chosen.status.tolist() == [Status.ZERO_GRADIENT if i == zero else 0 for i in range(4)]


@every_name
def test_all_gradients_zero(name: str) -> None:
    T = tasks_for(name, 3)
    chosen = GRAM_METHODS[name](T)
    assert weights_of(chosen, torch.zeros(T, T, dtype=torch.float64)).isfinite().all()
    assert chosen.status.tolist() == [Status.ZERO_GRADIENT] * T


@every_name
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_gradient_that_is_not_finite_is_named_and_poisons_the_direction(name: str, value) -> None:
    T = tasks_for(name, 4)
    G = random_rows(T, 7, seed=1)
    G[1, 5] = value
    chosen = GRAM_METHODS[name](T)
    weights = weights_of(chosen, G @ G.T)
    assert chosen.status.tolist() == [Status.NON_FINITE if i == 1 else 0 for i in range(T)]
    assert not (G.T @ weights).isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
@of_many
def test_hard_grams_are_solved(name: str, kind: str) -> None:
    """Optimality is each method's own test; this one reaches those that have none yet."""
    for T in (2, 5, 16, 40, 64):
        method = GRAM_METHODS[name](T)
        weights = weights_of(method, hard_gram(kind, T, seed=T))
        assert weights.isfinite().all()
        flags = {Status(flag) for flag in set(method.status.tolist())}
        allowed = {Status(0)}
        if kind == "low-rank":
            allowed |= {Status.STATIONARY, Status.NO_SOLUTION, Status.ILL_CONDITIONED}
        assert flags <= allowed


# ---------------------------------------------------------------------------------- symmetries


@pytest.mark.parametrize("name", [n for n in GRAM_METHODS if n not in NO_DEGREE])
@pytest.mark.parametrize("exponent", range(-12, 13, 3))
def test_scale_of_all_gradients(name: str, exponent: int) -> None:
    T = tasks_for(name, 5)
    G = random_rows(T, 40, seed=7).to(torch.float32)
    scale = 10.0**exponent
    losses = losses_of(T)
    base, _ = mtlkernels.aggregate([[g] for g in G], GRAM_METHODS[name](T), losses)
    got, _ = mtlkernels.aggregate([[g] for g in G * scale], GRAM_METHODS[name](T), losses)
    expected = base[0].double() * scale ** DEGREE.get(name, 1)
    tolerance = 1e-3 if name == "SDMGrad" else 2e-6
    torch.testing.assert_close(
        got[0].double(), expected, rtol=10 * tolerance, atol=tolerance * float(expected.norm())
    )


@pytest.mark.parametrize("name", sorted(NO_DEGREE))
def test_what_has_no_degree_has_none(name: str) -> None:
    G = random_rows(5, 40, seed=7)
    shrunk, plain = direction(name, 1e-3 * G), direction(name, G)
    for degree in (-1, 0, 1):
        assert (shrunk * 1e3**degree - plain).norm() > 1e-3 * plain.norm()


@pytest.mark.parametrize("name", [n for n in OF_MANY if n not in DRAWS])
@given(T=st.integers(2, 8), seed=st.integers(0, 10**6), kind=st.sampled_from(["", "twin", "span"]))
@settings(max_examples=15, deadline=None, derandomize=True)
def test_permuting_tasks_permutes_weights(name: str, T: int, seed: int, kind: str) -> None:
    """Also with a gradient twice, and with one that is a combination of others."""
    G = random_rows(T, 12, seed)
    G = G - 0.5 * G.mean(dim=0)
    if kind:
        G[-1] = G[0] if kind == "twin" else G[0] + 0.5 * G[T // 2]
    K = G @ G.T
    permutation = torch.randperm(T, generator=torch.Generator().manual_seed(seed))
    first, second = GRAM_METHODS[name](T), GRAM_METHODS[name](T)
    order = every_order(T)
    weights = weights_of(first, K, order)
    moved = permutation.argsort()[order[permutation]]
    permuted = weights_of(second, K[permutation][:, permutation], moved)
    d, e = G.T @ weights, G[permutation].T @ permuted
    tolerance = 1e-3 if name == "SDMGrad" else 1e-8
    torch.testing.assert_close(d, e, rtol=tolerance, atol=tolerance * float(G.norm()))
    assert torch.equal(first.status[permutation], second.status)


@every_name
def test_columns_may_be_split_merged_and_rotated(name: str) -> None:
    T = tasks_for(name, 4)
    G, losses = random_rows(T, 30, seed=11), losses_of(T)
    rotated = G @ torch.linalg.qr(random_rows(30, 30, seed=12)).Q
    pieces = [list(g.split([1, 7, 0, 22])) for g in G]
    whole, report = mtlkernels.aggregate([[g] for g in G], GRAM_METHODS[name](T), losses)
    split, _ = mtlkernels.aggregate(pieces, GRAM_METHODS[name](T), losses)
    tolerance = 1e-4 if name == "SDMGrad" else 1e-10
    torch.testing.assert_close(torch.cat(split), whole[0], rtol=tolerance, atol=tolerance)
    _, turned = mtlkernels.aggregate([[g] for g in rotated], GRAM_METHODS[name](T), losses)
    torch.testing.assert_close(turned.weights, report.weights, rtol=tolerance, atol=tolerance)


DUPLICATES_CHANGE_NOTHING = ["MGDA", "CRMOGM", "Normalized", "IMTLG", "ConFIG", "FairGrad-20"]


@pytest.mark.parametrize("name", DUPLICATES_CHANGE_NOTHING)
def test_a_duplicate_does_not_turn_the_direction(name: str) -> None:
    """For rules about sets of gradients; the higher FairGrad's alpha, the nearer it is to one."""
    G = random_rows(4, 20, seed=5)
    d, e = direction(name, G), direction(name, G[[0, 1, 2, 3, 3]])
    tolerance = 0.1 if name == "FairGrad-20" else 1e-9
    assert (d / d.norm() - e / e.norm()).norm() <= tolerance


# ------------------------------------------------------------------------- K known to float32


@of_many
@pytest.mark.parametrize("kind", ["opposed", "parallel", "dependent"])
def test_weights_do_not_run_away_on_float32_gradients(name: str, kind: str) -> None:
    """K's rounding may be all that is left of nearly cancelling gradients. A weight counts as the
    length it gives its gradient, in units of the answer's own scale (|g|, or 1 for degree 0) or of
    the direction: a fair one may have to be long. A ridge r on unit gradients leaves a fair answer
    weights of r^(-alpha / (1 + alpha)), whose terms cancel."""
    ridged = 1e6 if name == "FairGrad-20" else 2e4
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
            flagged = bool((method.status & (Status.ILL_CONDITIONED | Status.NO_SOLUTION)).any())
            assert lengths.max() <= (ridged if flagged else 1e3) * unit


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
    """Nearly opposite gradients in float32: K may be indefinite. Both take the same way out."""
    flags = set()
    for delta, seed in itertools.product((0.1, 1e-3, 1e-4, 1e-5, 0.0), range(8)):
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
    if method.keeps == "nothing":
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
        (torch.zeros(3, 3), "float64"),
    ],
    ids=["wide", "vector", "float32"],
)
def test_a_gram_that_is_none_is_refused(name: str, gram: Tensor, word: str) -> None:
    with pytest.raises(RuntimeError, match=word):
        GRAM_METHODS[name](len(gram))(gram, losses_of(len(gram)))


@pytest.mark.parametrize("name", [n for n in OF_MANY if n not in BLIND])
def test_a_negative_diagonal_is_no_gram_matrix(name: str) -> None:
    K = torch.diag(torch.tensor([1.0, -1.0, 2.0], dtype=torch.float64))
    method = GRAM_METHODS[name](3)
    weights = weights_of(method, K)
    if isinstance(method, CROSS):
        assert weights.isfinite().all()
    else:
        assert weights.isnan().all()
        assert method.status.tolist() == [0, Status.NON_FINITE, 0]


@of_many
def test_losses_of_other_tasks_are_refused(name: str) -> None:
    G = random_rows(3, 5, seed=0)
    with pytest.raises(ValueError, match="4 losses were given for 3 tasks"):
        mtlkernels.aggregate([[g] for g in G], GRAM_METHODS[name](3), losses_of(4))


def test_losses_of_other_tasks_are_refused_by_the_methods_that_use_them() -> None:
    K = torch.eye(3, dtype=torch.float64)
    with pytest.raises(ValueError, match="4 losses were given for 3 tasks"):
        LogLosses(UPGrad())(K, losses_of(4))
    with pytest.raises(RuntimeError, match="losses must be a contiguous float64 vector of 3"):
        GradNorm()(K, losses_of(4))


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan])
def test_a_loss_that_has_no_logarithm_is_named(bad: float) -> None:
    losses = torch.tensor([1.0, bad, 2.0], dtype=torch.float64)
    for method in (LogLosses(PCGrad()), LogLosses(AvgNorm())):
        assert method(torch.eye(3, dtype=torch.float64), losses).isnan().all()
        assert [flag & Status.INVALID_LOSS for flag in method.status.tolist()] == [0, 32, 0]
