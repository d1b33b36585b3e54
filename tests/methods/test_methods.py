"""PCGrad and AvgNorm by their formulas; methods by name, wrong arguments, many tasks."""

from __future__ import annotations

import math

import pytest
import torch
from hard_grams import random_rows, two_task_gram
from hypothesis import given, settings
from hypothesis import strategies as st

import mtlkernels
from mtlkernels import AvgNorm, CAGrad, PCGrad, Status
from mtlkernels.ops import NormScale

pytestmark = pytest.mark.usefixtures("one_thread")

SCALES = ("sum", "max", "mean", "rms", "median", "min", "harmonic")


# ------------------------------------------------------------------------------------- PCGrad


@given(a=st.floats(1e-8, 1e8), b=st.floats(1e-8, 1e8), cosine=st.floats(-0.999, 0.999))
@settings(max_examples=200, deadline=None)
def test_pcgrad_of_two_tasks_in_closed_form(a: float, b: float, cosine: float) -> None:
    K = two_task_gram(a, b, cosine)
    r = float(K[0, 1])
    expected = [1 - r / a, 1 - r / b] if r < 0 else [1.0, 1.0]
    torch.testing.assert_close(
        PCGrad()(K), torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0
    )


@pytest.mark.parametrize("T", [2, 3, 5, 12])
@pytest.mark.parametrize("n", [2, 3, 50])
def test_pcgrad_is_the_papers_algorithm_on_the_vectors(T: int, n: int) -> None:
    G = random_rows(T, n, seed=T * 100 + n)
    generator = torch.Generator().manual_seed(5)
    order = torch.stack(
        [
            torch.tensor([j for j in range(T) if j != i])[
                torch.randperm(T - 1, generator=generator)
            ]
            for i in range(T)
        ]
    )
    expected = torch.zeros(n, dtype=torch.float64)
    for i in range(T):
        v = G[i].clone()
        for j in order[i].tolist():
            if v @ G[j] < 0:
                v -= (v @ G[j]) / (G[j] @ G[j]) * G[j]
        expected += v
    got = G.T @ PCGrad()(G @ G.T, order=order)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


def test_pcgrad_draws_every_order_alike_and_repeats_it_from_its_state() -> None:
    K = random_rows(5, 3, seed=2)
    K = K @ K.T
    method = PCGrad(seed=9)
    first = [method(K) for _ in range(6)]
    assert len({tuple(w.tolist()) for w in first}) > 1, "the order never changes"
    restored = PCGrad(seed=1)
    again = PCGrad(seed=9)
    for step, weights in enumerate(first):
        restored.load_state_dict(again.state_dict())
        assert torch.equal(restored(K), weights), step
        again(K)


@pytest.mark.parametrize("T", [1, 2, 3, 7, 64])
def test_visiting_order_is_a_uniform_permutation_of_the_others(T: int) -> None:
    counts = torch.zeros(T, T)
    draws = 300 if T <= 7 else 3
    for step in range(draws):
        order = mtlkernels.ops.visiting_order(torch.tensor(3), torch.tensor(step), T)
        assert order.shape == (T, T - 1)
        for i, row in enumerate(order.tolist()):
            assert sorted(row) == [j for j in range(T) if j != i]
        if T > 1:
            counts[torch.arange(T), order[:, 0]] += 1
    if 3 <= T <= 7:
        share = counts[~torch.eye(T, dtype=torch.bool)] / draws
        # six standard deviations of a binomial share
        spread = math.sqrt(1 / (T - 1) * (1 - 1 / (T - 1)) / draws)
        assert (share - 1 / (T - 1)).abs().max() < 6 * spread


# ------------------------------------------------------------------------------------ AvgNorm


@pytest.mark.parametrize("scale", [*SCALES, 0.7])
def test_avgnorm_is_the_sum_of_unit_gradients_at_length_s(scale) -> None:
    G = random_rows(6, 9, seed=4) * 10 ** torch.linspace(-4, 4, 6, dtype=torch.float64)[:, None]
    n = G.norm(dim=1)
    length = {
        "sum": G.sum(dim=0).norm(),
        "max": n.max(),
        "mean": n.mean(),
        "rms": n.square().mean().sqrt(),
        "median": n.sort().values[2:4].mean(),
        "min": n.min(),
        "harmonic": 1 / (1 / n).mean(),
    }.get(scale, scale)
    expected = length * (G / n[:, None]).sum(dim=0)
    torch.testing.assert_close(G.T @ AvgNorm(scale)(G @ G.T), expected, rtol=1e-12, atol=0)


def test_avgnorm_median_of_an_odd_number_is_the_middle_one() -> None:
    G = torch.diag(torch.tensor([5.0, 1.0, 3.0], dtype=torch.float64))
    got = G.T @ AvgNorm("median")(G @ G.T)
    torch.testing.assert_close(got, torch.full((3,), 3.0).double())


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(
    ("rest", "rtol"), [(0.1, 1e-12), (1e-4, 1e-7), (1e-5, 1e-5), (1e-7, None), (0, None)]
)
def test_avgnorm_says_where_the_sum_drowns_in_rounding(
    scale: str, rest: float, rtol: float | None
) -> None:
    """K has the exactness of float64, so a sum drowns where a millionth of its terms is left."""
    g, h = torch.randn(2, 3000, generator=torch.Generator().manual_seed(0))
    grads = [[g], [-g + rest * h], [torch.zeros(3000)]]
    method = AvgNorm(scale)
    _, report = mtlkernels.aggregate(grads, method)
    K = mtlkernels.ops.gram([row[0] for row in grads], 3)
    flag = Status.ILL_CONDITIONED if rtol is None and scale == "sum" else 0
    plain, status = mtlkernels.reference.avgnorm(K, int(NormScale[scale.upper()]), 1.0)
    expected = [flag, flag, Status.ZERO_GRADIENT]
    assert method.status.tolist() == status.tolist() == expected
    length = {"sum": float(K.sum().clamp_min(0).sqrt())}.get(scale)
    if length is not None:
        unit = torch.tensor([length, length, 0.0], dtype=torch.float64)
        expected_weights = unit / K.diagonal().sqrt().clamp_min(1e-30)
        for weights in (report.weights, plain):
            # the sum cancels: its order of addition shows in what is left
            close = 1e-2 if rtol is None else rtol
            torch.testing.assert_close(weights, expected_weights, rtol=close, atol=0)


def test_avgnorm_names_only_what_is_not_finite() -> None:
    K = torch.ones(3, 3, dtype=torch.float64)
    K[1] = K[:, 1] = math.nan
    for answer in (mtlkernels.ops.avgnorm, mtlkernels.reference.avgnorm):
        assert answer(K, int(NormScale.SUM), 1.0)[1].tolist() == [0, Status.NON_FINITE, 0]


# ------------------------------------------------------------------- lookup and wrong arguments


def test_methods_by_name() -> None:
    assert isinstance(mtlkernels.get_method("PCGrad"), PCGrad)
    assert mtlkernels.get_method("ca-grad", c=0.3).c == 0.3
    with pytest.raises(ValueError, match="choose one of alignedmtl, avgnorm, blur, cagrad"):
        mtlkernels.get_method("nothing")


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: PCGrad(reduction="product"), "reduction"),
        (lambda: CAGrad(c=-0.1), "c=-0.1"),
        (lambda: CAGrad(c=math.nan), "c=nan"),
        (lambda: CAGrad(rescale=3), "rescale"),
        (lambda: CAGrad(reduction="max"), "reduction"),
        (lambda: AvgNorm("largest"), "largest"),
        (lambda: AvgNorm(0.0), "positive"),
        (lambda: AvgNorm(math.inf), "positive"),
    ],
)
def test_wrong_arguments_are_named(make, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        make()


def test_an_order_that_is_none_is_refused() -> None:
    K = torch.eye(3, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="order"):
        PCGrad()(K, order=torch.zeros(3, 3, dtype=torch.int64))
    with pytest.raises(RuntimeError, match="order names"):
        PCGrad()(K, order=torch.tensor([[1, 2], [0, 3], [0, 1]]))
