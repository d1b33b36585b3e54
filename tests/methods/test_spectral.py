"""ConFIG, IMTL-G, Aligned-MTL: equal projections and equal singular values."""

from __future__ import annotations

import math

import mpmath
import pytest
import torch
from hard_grams import KINDS, hard_gram, random_rows, two_task_gram
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import mtlkernels
from mtlkernels import IMTLG, AlignedMTL, AvgNorm, ConFIG, NashMTL, Status, ops, reference

pytestmark = pytest.mark.usefixtures("one_thread")

SCALES = ("min", "median", "rmse")


def cosine_matrix(K: Tensor) -> tuple[Tensor, Tensor]:
    n = K.diagonal().sqrt()
    return K / n[:, None] / n, n


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", [ConFIG(), IMTLG()], ids=repr)
@given(T=st.integers(2, 64), seed=st.integers(0, 10**6))
@settings(max_examples=15, deadline=None, derandomize=True)
def test_projections_are_equal_or_the_best_fit_to_it(kind: str, method, T: int, seed: int) -> None:
    """C y = 1 up to a factor; where C is singular, the residual is orthogonal to its range."""
    K = hard_gram(kind, T, seed)
    C, n = cosine_matrix(K)
    y = method(K) * n
    if kind == "low-rank" and int(method.status[0]):
        assert method.status.tolist() == [int(method.status[0])] * T
        assert int(method.status[0]) in (Status.STATIONARY, Status.ILL_CONDITIONED)
        return
    y = y * ((y @ C).sum() / (y @ C @ (C @ y)))  # the length that fits best
    residual = C @ y - 1
    if kind == "low-rank":
        residual = C @ residual
    assert residual.abs().max() <= 1e-9 * (1 + (C.abs() @ y.abs()).max())
    assert method.status.tolist() == [0] * T


@pytest.mark.parametrize("kind", KINDS)
@given(T=st.integers(2, 64), seed=st.integers(0, 10**6))
@settings(max_examples=10, deadline=None, derandomize=True)
def test_lengths_of_config_and_imtlg(kind: str, T: int, seed: int) -> None:
    K = hard_gram(kind, T, seed)
    C, n = cosine_matrix(K)
    w, v = ConFIG()(K), IMTLG()(K)
    length = float((w * n) @ C @ (w * n)) ** 0.5
    assert math.isclose(length * length, float(n @ (C @ (w * n))), rel_tol=1e-9)
    total = float(v.sum())
    assert math.isclose(total, 1.0, rel_tol=1e-9) or math.isclose(
        float(v.abs().sum()), 1.0, rel_tol=1e-9
    )
    if not w.any():  # the sum of projections is negative: only where gradients are dependent
        assert kind == "low-rank"
        return
    torch.testing.assert_close(v / v.abs().sum(), w / w.abs().sum(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("T", [3, 4, 8])
def test_imtlg_never_ascends(T: int) -> None:
    """Shared components and norms over two decades: there sum v < 0 happens."""
    generator = torch.Generator().manual_seed(T)
    turned, method = 0, IMTLG()
    with torch.no_grad():
        for _ in range(1000):
            U = torch.randn(T, 12, dtype=torch.float64, generator=generator)
            U = U + 2 * torch.randn(12, dtype=torch.float64, generator=generator)
            norms = 10 ** (2 * torch.rand(T, 1, dtype=torch.float64, generator=generator) - 1)
            G = U / U.norm(dim=1, keepdim=True) * norms
            w = method(G @ G.T)
            gains = (G @ (G.T @ w)) / norms[:, 0]
            assert gains.min() >= 0
            turned += float(w.sum()) < 0
            if w.sum() > 0:
                assert math.isclose(float(w.sum()), 1.0, rel_tol=1e-9)
    assert turned > 0 or T < 8


@given(a=st.floats(1e-8, 1e8), b=st.floats(1e-8, 1e8), cosine=st.floats(-0.999, 1 - 1e-8))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_two_tasks_in_closed_form(a: float, b: float, cosine: float) -> None:
    K = two_task_gram(a, b, cosine)
    n = K.diagonal().sqrt()
    sides = torch.tensor([float(n[1]), float(n[0])], dtype=torch.float64) / n.sum()
    torch.testing.assert_close(IMTLG()(K), sides, rtol=1e-12, atol=0)
    torch.testing.assert_close(ConFIG()(K), n.sum() / (2 * n), rtol=1e-12, atol=0)
    bisector = AvgNorm("max")(K)
    for method in (ConFIG(), IMTLG(), NashMTL(), AvgNorm("rms")):
        w = method(K)
        torch.testing.assert_close(w / w.sum(), bisector / bisector.sum(), rtol=1e-12, atol=0)


@given(a=st.floats(1e-8, 1e8), b=st.floats(1e-8, 1e8), cosine=st.floats(-0.9, 0.9))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_aligned_of_two_tasks_in_closed_form(a: float, b: float, cosine: float) -> None:
    """B = sqrt(lambda_min) (I + adj(K) / s) / t with s^2 = det K and t^2 = tr K + 2 s."""
    K = two_task_gram(a, b, cosine)
    with mpmath.workdps(60):
        a, b, r = (mpmath.mpf(float(x)) for x in (K[0, 0], K[1, 1], K[0, 1]))
        s = mpmath.sqrt(a * b - r * r)
        t = mpmath.sqrt(a + b + 2 * s)
        smallest = mpmath.sqrt((a + b - mpmath.sqrt((a - b) ** 2 + 4 * r * r)) / 2)
        expected = [smallest * (1 + (x - r) / s) / t for x in (b, a)]
    got = AlignedMTL()(K)
    exact = torch.tensor([float(x) for x in expected], dtype=torch.float64)
    # a row of B may cancel: compare in lengths along the gradients, whose aligned length is s
    assert ((got - exact).abs() * K.diagonal().sqrt()).max() <= 1e-12 * float(s / t)


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "low-rank"])
@pytest.mark.parametrize("scale", SCALES)
@given(T=st.integers(2, 32), seed=st.integers(0, 10**6))
@settings(max_examples=6, deadline=None, derandomize=True)
def test_aligned_gradients_are_orthogonal_and_of_one_length(
    kind: str, scale: str, T: int, seed: int
) -> None:
    """Column by column: the weights for p = e_j are row j of B, and B K B = s^2 I. Each entry is
    compared in the gradients' own lengths, |B| |K| |B|."""
    if kind == "nearly-parallel":
        kind = "random"  # near-parallel gradients are left to the rounding of K
    K = hard_gram(kind, T, seed)
    eye = torch.eye(T, dtype=torch.float64)
    code = int(ops.AlignedScale[scale.upper()])
    with torch.no_grad():
        B = torch.stack([ops.aligned(K, e, code)[0] for e in eye])
    aligned = B @ K @ B
    length = float(aligned.diagonal().mean())
    size = B.abs() @ K.abs() @ B.abs()
    error = (aligned - length * eye).abs() / size.clamp_min(length)
    assert error.max() <= 1e-9
    eigenvalues = torch.linalg.eigvalsh(K)
    expected = {
        "min": eigenvalues[0],
        "median": eigenvalues.median(),
        "rmse": eigenvalues.mean(),
    }[scale]
    # LAPACK knows eigenvalues to an ulp of the largest
    assert abs(length - float(expected)) <= 1e-9 * float(size.max()) + 1e-13 * float(
        eigenvalues[-1]
    )


@given(T=st.integers(2, 64), seed=st.integers(0, 10**6))
@settings(max_examples=15, deadline=None, derandomize=True)
def test_aligned_of_dependent_gradients_keeps_to_their_rank(T: int, seed: int) -> None:
    """B K B = s^2 P, P the projection on K's range; its trace is the rank."""
    rank = min(T, max(2, T // 3))
    K = hard_gram("low-rank", T, seed)
    w = AlignedMTL()(K)
    values, vectors = torch.linalg.eigh(K)
    V = vectors[:, -rank:]
    expected = V @ ((V.T.sum(dim=1)) * (values[-rank] / values[-rank:]).sqrt())
    torch.testing.assert_close(w, expected, rtol=1e-8, atol=1e-10)


# ------------------------------------------------------------------------------ edge cases


@pytest.mark.parametrize("method", [ConFIG(), IMTLG()], ids=repr)
def test_unit_gradients_that_cancel_are_stationary(method) -> None:
    angle = torch.arange(3, dtype=torch.float64) * 2 * math.pi / 3
    G = torch.stack([angle.cos(), angle.sin()], dim=1) * torch.tensor([[1.0], [5.0], [0.1]])
    assert torch.equal(method(G @ G.T), torch.zeros(3, dtype=torch.float64))
    assert method.status.tolist() == [Status.STATIONARY] * 3


@pytest.mark.parametrize("method", [ConFIG(), IMTLG(), AlignedMTL()], ids=repr)
def test_duplicates_share_what_one_would_have(method) -> None:
    G = random_rows(3, 20, seed=5)
    w = method((G[[0, 1, 2, 2]]) @ G[[0, 1, 2, 2]].T)
    torch.testing.assert_close(w[2], w[3], rtol=1e-12, atol=0)
    if not isinstance(method, AlignedMTL):
        d, alone = G[[0, 1, 2, 2]].T @ w, G.T @ method(G @ G.T)
        torch.testing.assert_close(d / d.norm(), alone / alone.norm(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("method", [ConFIG(), IMTLG()], ids=repr)
def test_nearly_parallel_gradients_keep_their_bisector(method) -> None:
    """Cosine 1 - 1e-8: the common part and the small differences both count."""
    t = math.sqrt(2e-8)
    G = torch.tensor([[1.0, 0.0, 0.0], [1.0, t, 0.0], [1.0, 0.0, t]], dtype=torch.float64)
    G = G / G.norm(dim=1, keepdim=True)
    d = G.T @ method(G @ G.T)
    gains = G @ d
    torch.testing.assert_close(gains / gains.mean(), torch.ones(3).double(), rtol=1e-12, atol=0)
    circle = torch.linalg.solve(G, torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(d / d.norm(), circle / circle.norm(), rtol=0, atol=1e-11)


def test_norms_of_any_size_do_not_lower_the_rank() -> None:
    G = torch.diag(torch.tensor([1.0, 1e-6, 1e-12], dtype=torch.float64))
    torch.testing.assert_close(
        AlignedMTL()(G @ G.T),
        torch.tensor([1e-12, 1e-6, 1.0], dtype=torch.float64),
        rtol=1e-12,
        atol=0,
    )


@pytest.mark.parametrize("scale", SCALES)
def test_conventions_of_aligned(scale: str) -> None:
    K = hard_gram("random", 4, seed=3)
    total = AlignedMTL(scale)(K)
    torch.testing.assert_close(AlignedMTL(scale, reduction="mean")(K), total / 4)
    p, q = [1.0, 0.0, 3.0, 0.5], [0.0, 1.0, 0.0, 0.5]
    both = [x + y for x, y in zip(p, q, strict=True)]
    parts = 4.5 / 6 * AlignedMTL(scale, p)(K) + 1.5 / 6 * AlignedMTL(scale, q)(K)
    torch.testing.assert_close(AlignedMTL(scale, both)(K), parts)
    torch.testing.assert_close(
        AlignedMTL(scale, p, reduction="mean")(K) * 4, AlignedMTL(scale, p)(K)
    )
    with pytest.raises(ValueError, match="preference has 4 numbers for 3 tasks"):
        AlignedMTL(scale, p)(K[:3, :3])


@pytest.mark.parametrize("kind", KINDS)
def test_reference_agrees(kind: str) -> None:
    for T in (1, 2, 9):
        K = hard_gram(kind, T, seed=T)
        p = torch.linspace(0.5, 2, T, dtype=torch.float64)
        calls = [("equiangular", (int(length),)) for length in ops.EquiangularLength]
        calls += [("aligned", (p, int(s), True)) for s in ops.AlignedScale]
        for name, numbers in calls:
            got, status = getattr(ops, name)(K, *numbers)
            expected, flags = getattr(reference, name)(K, *numbers)
            assert torch.equal(status, flags)
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-9 * float(got.abs().max()))


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: AlignedMTL("max"), "scale='max'"),
        (lambda: AlignedMTL(reduction="max"), "reduction='max'"),
        (lambda: AlignedMTL(preference=[1.0, -1.0]), "at least 0"),
        (lambda: AlignedMTL(preference=[[1.0]]), "one finite number per task"),
        (lambda: AlignedMTL(preference=[0.0, 0.0]), "not all 0"),
    ],
)
def test_wrong_arguments_are_named(make, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        make()


def test_methods_are_found_by_name() -> None:
    for name in ("NashMTL", "nash-mtl", "imtl-g", "config", "aligned-mtl", "pivrg", "fair_grad"):
        assert isinstance(mtlkernels.get_method(name), mtlkernels.GramMethod)


def test_config_ascends_neither_the_losses_nor_their_normalised_sum() -> None:
    """Few dimensions and long norms: there the paper's length would be negative."""
    method, turned = ConFIG(), 0
    for seed in range(400):
        G = random_rows(6, 2, seed) * 10 ** (2 * random_rows(6, 1, seed + 1000))
        n = G.norm(dim=1)
        x = torch.linalg.pinv(G / n[:, None]).sum(dim=1)
        d = G.T @ method(G @ G.T)
        if method.status[0] & Status.ILL_CONDITIONED:
            continue
        size = float(n.sum() * d.norm())
        assert G.sum(dim=0) @ d >= -1e-9 * size
        assert (G / n[:, None]).sum(dim=0) @ d >= -1e-9 * size
        if G.sum(dim=0) @ x < -1e-6 * n.sum() * x.norm():
            turned += 1
            assert not d.any()
            assert method.status.tolist() == [Status.STATIONARY] * 6
    assert turned > 5
