"""The methods by their mathematics: closed forms, edge cases, symmetries, scale."""

from __future__ import annotations

import math

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import mtlkernels
from mtlkernels import (
    CRMOGM,
    DBMTL,
    IMTLG,
    MGDA,
    NTKMTL,
    PIVRG,
    SLW,
    AlignedMTL,
    AvgNorm,
    CAGrad,
    ConFIG,
    DualProj,
    FairGrad,
    GradVac,
    GramMethod,
    IMGrad,
    Mean,
    NashMTL,
    Normalized,
    PCGrad,
    Status,
    Sum,
    UPGrad,
)

SCALES = ("sum", "max", "mean", "rms", "median", "min", "harmonic")
METHODS = {
    "sum": Sum,
    "mean": Mean,
    "pcgrad": PCGrad,
    "pcgrad-mean": lambda: PCGrad(reduction="mean"),
    "cagrad": CAGrad,
    "cagrad-0.9-square": lambda: CAGrad(c=0.9, rescale=1),
    "cagrad-1.5-sum": lambda: CAGrad(c=1.5, rescale=2, reduction="sum"),
    **{f"avgnorm-{scale}": (lambda scale=scale: AvgNorm(scale)) for scale in SCALES},
    "avgnorm-2.5": lambda: AvgNorm(2.5),
    "mgda": MGDA,
    "mgda-l2": lambda: Normalized(MGDA()),
    "cagrad-l2": lambda: Normalized(CAGrad(), by="l2"),
    "crmogm-mgda": lambda: CRMOGM(MGDA()),
    "upgrad": UPGrad,
    "dualproj": DualProj,
    "imgrad-code": lambda: IMGrad(form="code", rescale=1),
    "gradvac": GradVac,
    "ntkmtl": NTKMTL,
    "slw": SLW,
    "dbmtl": DBMTL,
    "config": ConFIG,
    "imtlg": IMTLG,
    "aligned": AlignedMTL,
    "aligned-mean": lambda: AlignedMTL("rmse", reduction="mean"),
    "nash": NashMTL,
    "nash-exact": lambda: NashMTL(max_norm=None),
    "fairgrad": FairGrad,
    "fairgrad-0.5": lambda: FairGrad(0.5),
    "pivrg": PIVRG,
}
# Of the direction in the scale of all gradients, where it is not 1.
DEGREE = {
    "mgda-l2": 0,
    "cagrad-l2": 0,
    "avgnorm-2.5": 0,
    "nash": 0,
    "nash-exact": 0,
    "fairgrad": -1 / 3,
    "fairgrad-0.5": 1 / 3,
    "pivrg": -1 / 3,
}
every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())


def direction(G: Tensor, method: GramMethod) -> Tensor:
    return G.T @ method(G @ G.T)


def rows(*vectors: list[float]) -> Tensor:
    return torch.tensor(vectors, dtype=torch.float64)


def random_rows(T: int, n: int, seed: int) -> Tensor:
    return torch.randn(T, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def two_task_gram(a: float, b: float, cosine: float) -> Tensor:
    r = cosine * math.sqrt(a * b)
    return torch.tensor([[a, r], [r, b]], dtype=torch.float64)


# ------------------------------------------------------------------ edge cases of every method


# Delivered direction for one task with gradient g, for T identical gradients g, as factors of g.
ONE_TASK = {
    "cagrad": 1.4,
    "cagrad-0.9-square": 1.9 / 1.81,
    "cagrad-1.5-sum": 1.0,
    "imgrad-code": 1.8 / 1.64,
    "mgda-l2": 1 / 13,
    "cagrad-l2": 1.4 / 13,
    "avgnorm-2.5": 2.5 / 13,
}
ONE_TASK |= {"nash": 1 / 13, "nash-exact": 1 / 13}
ONE_TASK |= {"fairgrad": 13 ** (-4 / 3), "fairgrad-0.5": 13 ** (-2 / 3), "pivrg": 13 ** (-4 / 3)}
IDENTICAL = {
    "sum": 3,
    "mean": 1,
    "pcgrad": 3,
    "pcgrad-mean": 1,
    "cagrad": 1.4,
    "cagrad-0.9-square": 1.9 / 1.81,
    "cagrad-1.5-sum": 3,
    "avgnorm-sum": 9,
    "avgnorm-2.5": 3 * 2.5 / 13,
    "mgda": 1,
    "mgda-l2": 1 / 13,
    "crmogm-mgda": 1,
    "upgrad": 1,
    "dualproj": 1,
    "imgrad-code": 1.8 / 1.64,
    "cagrad-l2": 1.4 / 13,
    "imtlg": 1,
    "aligned-mean": 1,
    "nash": 1 / 13,
    "nash-exact": math.sqrt(3) / 13,
    "fairgrad": 3 * (3 * 169) ** (-2 / 3),
    "fairgrad-0.5": 3 * (3 * 169) ** (-1 / 3),
    "pivrg": 3 * (3 * 169) ** (-2 / 3),
}


@pytest.mark.parametrize("name", METHODS)
def test_one_task(name: str) -> None:
    g = rows([3.0, -4.0, 12.0])
    factor = ONE_TASK.get(name, 1.0)
    torch.testing.assert_close(direction(g, METHODS[name]()), factor * g[0], rtol=1e-14, atol=0)


@pytest.mark.parametrize("name", METHODS)
def test_identical_gradients(name: str) -> None:
    g = rows([3.0, -4.0, 12.0])
    factor = IDENTICAL.get(name, 3.0)
    got = direction(g.repeat(3, 1), METHODS[name]())
    torch.testing.assert_close(got, factor * g[0], rtol=1e-13, atol=0)


@every_method
def test_opposite_gradients_cancel(method) -> None:
    g = rows([3.0, -4.0, 12.0])
    got = direction(torch.cat([g, -g]), method())
    assert got.abs().max() <= 1e-12


@pytest.mark.parametrize("name", [name for name in METHODS if name not in ("sum", "mean")])
@pytest.mark.parametrize("zero", [0, 1, 3])
def test_zero_gradient_takes_no_part(name: str, zero: int) -> None:
    G = random_rows(4, 7, seed=3)
    others = [i for i in range(4) if i != zero]
    chosen, reduced = METHODS[name](), METHODS[name]()
    K = G @ G.T
    K[zero] = K[:, zero] = 0
    if isinstance(chosen, (PCGrad, GradVac)):
        order = torch.tensor([[j for j in range(4) if j != i] for i in range(4)])
        rest = torch.tensor([[j for j in range(3) if j != i] for i in range(3)])
        weights, expected = chosen(K, order=order), reduced(K[others][:, others], order=rest)
    else:
        weights, expected = chosen(K), reduced(K[others][:, others])
    assert weights[zero] == 0
    torch.testing.assert_close(weights[others], expected, rtol=1e-13, atol=0)
    assert chosen.status.tolist() == [Status.ZERO_GRADIENT if i == zero else 0 for i in range(4)]


@every_method
def test_all_gradients_zero(method) -> None:
    chosen = method()
    weights = chosen(torch.zeros(3, 3, dtype=torch.float64))
    assert weights.isfinite().all()
    assert chosen.status.tolist() == [Status.ZERO_GRADIENT] * 3


@every_method
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_is_named_and_poisons_the_direction(method, value) -> None:
    G = random_rows(4, 7, seed=1)
    G[2, 5] = value
    chosen = method()
    weights = chosen(G @ G.T)
    assert chosen.status.tolist() == [0, 0, Status.NON_FINITE, 0]
    assert not (G.T @ weights).isfinite().all()


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("exponent", range(-12, 13, 3))
def test_scale_of_all_gradients(name: str, exponent: int) -> None:
    method, degree = METHODS[name], DEGREE.get(name, 1)
    G = random_rows(5, 40, seed=7).to(torch.float32)
    scale = 10.0**exponent
    grads = [[g] for g in G]
    scaled = [[g] for g in G * scale]
    base, _ = mtlkernels.aggregate(grads, method())
    got, _ = mtlkernels.aggregate(scaled, method())
    torch.testing.assert_close(
        got[0].double() / scale**degree, base[0].double(), rtol=2e-5, atol=2e-6 * base[0].norm()
    )


@every_method
@given(T=st.integers(2, 8), seed=st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_permuting_tasks_permutes_weights(method, T: int, seed: int) -> None:
    G = random_rows(T, 6, seed)
    G = G - 0.5 * G.mean(dim=0)
    K = G @ G.T
    permutation = torch.randperm(T, generator=torch.Generator().manual_seed(seed))
    first, second = method(), method()
    if isinstance(first, (PCGrad, GradVac)):
        order = torch.tensor([[j for j in range(T) if j != i] for i in range(T)])
        inverse = permutation.argsort()
        weights = first(K, order=order)
        permuted = second(K[permutation][:, permutation], order=inverse[order[permutation]])
    else:
        weights, permuted = first(K), second(K[permutation][:, permutation])
    d, e = G.T @ weights, G[permutation].T @ permuted
    # without a solution the ridge decides what rounding leaves
    tolerance = 1e-3 if bool((first.status & Status.NO_SOLUTION).any()) else 1e-8
    torch.testing.assert_close(d, e, rtol=tolerance, atol=tolerance * float(G.norm()))


@every_method
def test_weights_depend_on_inner_products_alone(method) -> None:
    G = random_rows(4, 30, seed=11)
    rotation = torch.linalg.qr(random_rows(30, 30, seed=12)).Q
    torch.testing.assert_close(method()(G @ G.T), method()((G @ rotation) @ (G @ rotation).T))


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


# ------------------------------------------------------------------------------------- CAGrad


def cagrad_certificate(K: Tensor, weights: Tensor, c: float) -> float:
    """How far weights are from optimal: of max_d min_i g_i . d over the ball, in shares of
    c ||g0|| ||g_i||. Zero if and only if d = g0 + u, ||u|| <= c ||g0||, and some convex combination
    g_w has u = c ||g0|| g_w / ||g_w|| with all its tasks at the minimum."""
    mean = torch.full_like(weights, 1 / len(K))
    k = c * (mean @ K @ mean).clamp_min(0).sqrt()
    v = weights - mean
    radius = (v @ K @ v).clamp_min(0).sqrt()
    share = v / v.sum()
    gain = (K @ weights) / (k * K.diagonal().sqrt())
    lowest = (share @ K @ weights) / (k * K.diagonal().sqrt())
    return max(float((radius / k - 1).abs()), float((lowest - gain).max()), float(-share.min()))


KINDS = ("random", "low-rank", "nearly-parallel", "conflicting", "badly-scaled")


def hard_gram(kind: str, T: int, seed: int) -> Tensor:
    G = random_rows(T, 100, seed)
    if kind == "low-rank":
        G = random_rows(T, max(1, T // 3), seed)
    elif kind == "nearly-parallel":
        G = G[:1] + 1e-4 * random_rows(T, 100, seed + 1)
    elif kind == "conflicting":
        G = G - 0.98 * G.mean(dim=0)
    elif kind == "badly-scaled":
        G = G * 10 ** (8 * torch.rand(T, 1, generator=torch.Generator().manual_seed(seed)) - 4)
    return G @ G.T


@pytest.mark.parametrize("kind", KINDS)
@given(T=st.integers(2, 64), c=st.sampled_from([0.1, 0.4, 0.5, 0.9]), seed=st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_cagrad_is_optimal(kind: str, T: int, c: float, seed: int) -> None:
    K = hard_gram(kind, T, seed)
    method = CAGrad(c=c)
    assert cagrad_certificate(K, method(K), c) <= 1e-9
    assert method.status.tolist() == [0] * T


@given(
    a=st.floats(1e-8, 1e8),
    b=st.floats(1e-8, 1e8),
    cosine=st.floats(-0.999, 0.999),
    c=st.floats(0.05, 0.95),
)
@settings(max_examples=200, deadline=None)
def test_cagrad_of_two_tasks_in_closed_form(a: float, b: float, cosine: float, c: float) -> None:
    """The closed form cancels where norms differ much, so it is evaluated with 60 digits."""
    K = two_task_gram(a, b, cosine)
    with mpmath.workdps(60):
        a, b, r = (mpmath.mpf(float(x)) for x in (K[0, 0], K[1, 1], K[0, 1]))
        D, det, p, A = a + b - 2 * r, a * b - r * r, r - b, (a - b) / 2
        k = c * mpmath.sqrt(a + b + 2 * r) / 2

        def length(x: mpmath.mpf) -> mpmath.mpf:
            return mpmath.sqrt(D * x * x + 2 * p * x + b)

        candidates = [mpmath.mpf(0), mpmath.mpf(1)]
        if D * k * k > A * A:
            y = -A * mpmath.sqrt(det / (D * k * k - A * A))
            candidates.append(min(max((y - p) / D, mpmath.mpf(0)), mpmath.mpf(1)))
        x = min(candidates, key=lambda x: A * x + k * length(x))
        expected = [float(0.5 + k / length(x) * share) for share in (x, 1 - x)]
    error = (CAGrad(c=c)(K) - torch.tensor(expected, dtype=torch.float64)).abs()
    # as lengths along each gradient: weights of a gradient 1e8 times shorter are 1e8 times larger
    norms = K.diagonal().sqrt()
    assert (error * norms).max() <= 1e-12 * max(
        w * float(n) for w, n in zip(expected, norms, strict=True)
    )


@pytest.mark.parametrize("T", [3, 6, 20])
def test_cagrad_at_a_stationary_point_takes_the_nearest_direction_without_conflict(T: int) -> None:
    """Gradients that span a plane positively, and a common part off it: no direction helps all in
    the plane, so d keeps the common part of g0 alone. The ball reaches it for c > 1."""
    G = torch.zeros(T, 4, dtype=torch.float64)
    angle = torch.arange(T, dtype=torch.float64) * 2 * math.pi / T
    G[:, 0], G[:, 1] = angle.cos() * torch.linspace(1, 3, T), angle.sin() * torch.linspace(1, 3, T)
    method = CAGrad(c=1.5)
    d = direction(G, method)
    assert d.norm() <= 1e-9 * G.norm()
    assert method.status.tolist() == [Status.STATIONARY] * T


@pytest.mark.parametrize("delta", [1e-2, 1e-3, 3e-4, 1e-4, 1e-5, 0.0])
def test_cagrad_stays_in_its_ball_on_float32_gradients_that_nearly_oppose(delta: float) -> None:
    """K's own rounding is then larger than what is left of the gradients in the plane."""
    for seed in range(40):
        g, h, e = torch.randn(3, 4096, generator=torch.Generator().manual_seed(seed))
        G = torch.stack([g, -g + delta * e, h])
        (d,), _ = mtlkernels.aggregate([[row] for row in G], CAGrad(c=0.4))
        g0 = G.double().mean(dim=0)
        assert (d - g0).norm() <= 1.05 * 0.4 * g0.norm()


def test_cagrad_says_where_it_hangs_on_rounding() -> None:
    K = torch.tensor(
        [
            [3892.2219, -3892.2211, -119.3207],
            [-3892.2211, 3892.2201, 119.3193],
            [-119.3207, 119.3193, 4038.0752],
        ],
        dtype=torch.float64,
    )
    method = CAGrad(c=0.4)
    assert method(K).abs().max() < 1e3
    assert method.status.tolist() == [Status.ILL_CONDITIONED] * 3


def test_cagrad_conventions() -> None:
    K = hard_gram("conflicting", 4, seed=0)
    plain = CAGrad(c=0.7)(K)
    torch.testing.assert_close(CAGrad(c=0.7, rescale=1)(K), plain / 1.49)
    torch.testing.assert_close(CAGrad(c=0.7, rescale=2)(K), plain / 1.7)
    torch.testing.assert_close(CAGrad(c=0.7, reduction="sum")(K), 4 * plain)
    torch.testing.assert_close(CAGrad(c=0.0)(K), torch.full((4,), 0.25, dtype=torch.float64))


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
    torch.testing.assert_close(direction(G, AvgNorm(scale)), expected, rtol=1e-12, atol=0)


def test_avgnorm_median_of_an_odd_number_is_the_middle_one() -> None:
    G = torch.diag(torch.tensor([5.0, 1.0, 3.0], dtype=torch.float64))
    torch.testing.assert_close(direction(G, AvgNorm("median")), torch.full((3,), 3.0).double())


# ------------------------------------------------------------------- lookup and wrong arguments


def test_methods_by_name() -> None:
    assert isinstance(mtlkernels.get_method("PCGrad"), PCGrad)
    assert mtlkernels.get_method("ca-grad", c=0.3).c == 0.3
    with pytest.raises(ValueError, match="choose one of alignedmtl, avgnorm, cagrad"):
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


@pytest.mark.parametrize("method", [PCGrad(), CAGrad(), AvgNorm(), Sum(), Mean()], ids=repr)
@pytest.mark.parametrize(
    ("gram", "word"),
    [
        (torch.zeros(2, 3, dtype=torch.float64), "square"),
        (torch.zeros(3, dtype=torch.float64), "square"),
        (torch.zeros(3, 3), "float64"),
    ],
    ids=["wide", "vector", "float32"],
)
def test_a_gram_that_is_none_is_refused(method, gram: Tensor, word: str) -> None:
    with pytest.raises(RuntimeError, match=word):
        method(gram)


def test_an_order_that_is_none_is_refused() -> None:
    K = torch.eye(3, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="order"):
        PCGrad()(K, order=torch.zeros(3, 3, dtype=torch.int64))
    with pytest.raises(RuntimeError, match="order names"):
        PCGrad()(K, order=torch.tensor([[1, 2], [0, 3], [0, 1]]))


@pytest.mark.parametrize(
    "method",
    [PCGrad(), CAGrad(), AvgNorm(), NashMTL(), ConFIG(), AlignedMTL()],
    ids=repr,
)
def test_more_tasks_than_native_solvers_take_are_served_and_said(method) -> None:
    G = random_rows(70, 100, seed=0)
    with pytest.warns(UserWarning, match="70 tasks are more than the 64"):
        weights = method(G @ G.T)
    assert weights.shape == (70,)
    assert weights.isfinite().all()
