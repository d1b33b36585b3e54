"""K is as exact as the gradients: against correctly rounded inner products of what is stored."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mtlkernels import ops, reference

pytestmark = pytest.mark.usefixtures("one_thread", "seeded")

Gram = Callable[[list[Tensor], int], Tensor]
GRAMS: dict[str, Gram] = {"ops": ops.gram, "reference": reference.gram}
UNIT = 2.0**-53
TASKS = [*range(1, 10), 20, 64]
BOUNDARIES = [1, 2, 15, 16, 17, 31, 33, 255, 256, 257, 511, 513, 1023, 1025, 4095, 4096, 4097, 8209]


@pytest.fixture(params=GRAMS.values(), ids=GRAMS.keys())
def gram(request: pytest.FixtureRequest) -> Gram:
    return request.param


def products(x: Tensor, y: Tensor) -> list[float]:
    """Numbers whose exact sum is <x, y>; for float64 by Dekker's product, of ordinary sizes."""
    product = x.double() * y.double()
    if x.dtype != torch.float64:
        return product.tolist()

    def halves(z: Tensor) -> tuple[Tensor, Tensor]:
        big = z * (2.0**27 + 1)
        high = big - (big - z)
        return high, z - high

    (a, b), (c, d) = halves(x), halves(y)
    return [*product.tolist(), *(((a * c - product) + a * d + b * c) + b * d).tolist()]


def exact(grads: list[Tensor], T: int) -> Tensor:
    """The inner products, each rounded once."""
    P = len(grads) // T
    K = torch.zeros(T, T, dtype=torch.float64)
    for i in range(T):
        for j in range(i + 1):
            pairs = zip(grads[i * P : (i + 1) * P], grads[j * P : (j + 1) * P], strict=True)
            terms = [products(x, y) for x, y in pairs if x.numel() and y.numel()]
            K[i, j] = K[j, i] = math.fsum(itertools.chain.from_iterable(terms))
    return K


def units(K: Tensor, grads: list[Tensor], T: int) -> Tensor:
    """|dK_ij| in units of 2^-53 |g_i| |g_j|, after what every K has to satisfy."""
    expected = exact(grads, T)
    norms = expected.diagonal().sqrt()
    scale = norms[:, None] * norms
    assert torch.equal(K, K.T)
    error = (K - expected).abs()
    assert not error[scale == 0].any()
    return torch.where(scale == 0, 0.0, error / scale / UNIT)


def check(gram: Gram, grads: list[Tensor], T: int) -> float:
    """Asserts the bound, and the typical size well below it; returns the latter."""
    found = units(gram(grads, T), grads, T)
    assert found.max() <= reference.GRAM_NOISE / UNIT
    assert found.square().mean().sqrt() <= 3
    return float(found.max())


def test_the_bound_is_one_number() -> None:
    assert reference.GRAM_NOISE == 64 * UNIT


@pytest.mark.parametrize("T", TASKS)
def test_every_number_of_tasks(gram: Gram, T: int, float_dtype: torch.dtype) -> None:
    n = 1100 if T < 10 else 150
    check(gram, [torch.randn(m).to(float_dtype) for _ in range(T) for m in (n, 3, 37)], T)


@pytest.mark.parametrize("n", BOUNDARIES)
@pytest.mark.parametrize("T", [1, 3, 9])
def test_every_length(gram: Gram, n: int, T: int, float_dtype: torch.dtype) -> None:
    check(gram, [torch.randn(n).to(float_dtype) for _ in range(T)], T)


@pytest.mark.parametrize("T", [2, 4, 5, 8, 17])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_ends_of_the_range(gram: Gram, T: int, dtype: torch.dtype) -> None:
    """Rows of denormals, of the largest numbers, and of both beside each other."""
    sizes = [1e-39, 3e37, 1.0, 1e-30, 1e19]
    rows = [(sizes[t % 5] * torch.randn(600)).to(dtype) for t in range(T)]
    rows[0][::3] = 3e38
    check(gram, rows, T)


@pytest.mark.parametrize("exponent", [-12, -6, -3])
def test_pairs_that_nearly_agree(gram: Gram, exponent: int, float_dtype: torch.dtype) -> None:
    a = torch.randn(5000, dtype=torch.float64)
    rows = [a.to(float_dtype), (a + 10.0**exponent * torch.randn(5000)).to(float_dtype)]
    check(gram, rows, 2)
    apart = exact([rows[0].double() - rows[1].double()], 1).item()
    K = gram(rows, 2)
    distance = K[0, 0] - 2 * K[0, 1] + K[1, 1]
    assert abs(distance - apart) <= 4 * reference.GRAM_NOISE * K[0, 0]


@pytest.mark.parametrize("kind", ["equal", "positive", "falling", "alternating"])
@pytest.mark.parametrize("T", [2, 6, 8, 11])
def test_rounding_that_has_one_sign(gram: Gram, kind: str, T: int) -> None:
    n = 20_000
    base = {
        "equal": torch.full((n,), 1.1),
        "positive": torch.rand(n),
        "falling": 0.999 ** torch.arange(n),
        "alternating": torch.rand(n) * (-1.0) ** torch.arange(n),
    }[kind]
    found = units(gram(rows := [base * (t + 1) for t in range(T)], T), rows, T)
    assert found.max() <= reference.GRAM_NOISE / UNIT


def test_many_small_parameters(gram: Gram) -> None:
    check(gram, [torch.rand(5) + 1 for _ in range(2 * 3000)], 2)


def test_long_rows(gram: Gram) -> None:
    """The sums of several segments, of equal numbers: the exact answer is a product."""
    n = 5_000_001
    x, y = torch.tensor(1.1), torch.tensor(-0.3)
    K = gram([x.expand(n), y.expand(n)], 2)
    for i, a in enumerate((x, y)):
        for j, b in enumerate((x, y)):
            product = a.double().item() * b.double().item()
            assert abs(K[i, j].item() - n * product) <= 64 * UNIT * n * abs(product)


def test_absent_gradients_have_no_part(gram: Gram, float_dtype: torch.dtype) -> None:
    none = torch.empty(0, dtype=float_dtype)
    x, y, z = (torch.randn(n).to(float_dtype) for n in (700, 33, 700))
    check(gram, [x, none, z, y, none, y], 3)


@pytest.mark.parametrize("T", [2, 9])
def test_infinite_sums_stay_infinite(gram: Gram, T: int) -> None:
    rows = [torch.full((3,), 1e200, dtype=torch.float64) for _ in range(T)]
    assert (gram(rows, T) == torch.inf).all()


def test_sums_of_parts(float_dtype: torch.dtype) -> None:
    """Grams of groups of parameters, added up, are as exact as one of all."""
    grads = [torch.randn(n).to(float_dtype) for _ in range(3) for n in (100, 2000, 7)]
    parts = [ops.gram(grads[p::3], 3) for p in range(3)]
    found = units(parts[0] + parts[1] + parts[2], grads, 3)
    assert found.max() <= reference.GRAM_NOISE / UNIT


def test_averages_are_measured_as_they_are_stored() -> None:
    grads = [torch.randn(3000), torch.randn(3000)]
    for track in (ops.track_gram, reference.track_gram):
        state = torch.randn(2, 3008)
        state[:, 3000:] = 0
        ones, rate = torch.ones(2).double(), torch.tensor(1e-3).double()
        K = track(grads, 2, ones, rate, state)
        assert units(K, list(state), 2).max() <= reference.GRAM_NOISE / UNIT


def test_two_batches() -> None:
    first, second = [torch.randn(900) for _ in range(4)], [torch.randn(900) for _ in range(4)]
    A = ops.cross_gram(first, second, 4)
    expected = exact([*first, *second], 8)
    norms = expected.diagonal().sqrt()
    limit = reference.GRAM_NOISE * norms[:4, None] * norms[4:]
    assert ((A - expected[:4, 4:]).abs() <= limit).all()
