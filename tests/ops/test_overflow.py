"""Sums whose parts leave float32's range though they fit themselves: the answer, not infinity."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mtlkernels import ops, reference

pytestmark = pytest.mark.usefixtures("one_thread", "seeded")

BIG = 3e38  # of a largest number of 3.4e38
LENGTHS = [1, 16, 37, 1024, 5000]
BACKENDS = {"ops": ops, "reference": reference}


@pytest.fixture(params=BACKENDS.values(), ids=BACKENDS.keys())
def backend(request: pytest.FixtureRequest) -> object:
    return request.param


def spread(values: list[float], n: int, dtype: torch.dtype) -> tuple[list[Tensor], Tensor]:
    """Rows of ordinary numbers in which every third column is `values`, and which columns these
    are."""
    rows = [torch.randn(n).to(dtype) for _ in values]
    at = torch.arange(n) % 3 == 0
    for row, value in zip(rows, values, strict=True):
        row[at] = value
    return rows, at


def close(found: Tensor, expected: Tensor) -> None:
    """Equal to the rounding of float32 sums and of the dtype, infinities alike."""
    eps = torch.finfo(found.dtype).eps
    torch.testing.assert_close(found.double(), expected.double(), rtol=4 * eps, atol=1e-5)


def weighted(rows: list[Tensor], weights: Tensor, dtype: torch.dtype) -> Tensor:
    total = sum(w * row.double() for w, row in zip(weights.tolist(), rows, strict=True))
    assert isinstance(total, Tensor)
    return total.to(dtype)


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("T", [3, 11])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_combine(backend: object, n: int, T: int, dtype: torch.dtype) -> None:
    rows, at = spread([BIG, BIG, -BIG, *[1.0] * (T - 3)], n, dtype)
    weights = torch.ones(T).double()
    out = backend.combine(rows, weights)  # type: ignore[attr-defined]
    expected = weighted(rows, weights, dtype)
    assert torch.equal(out[:n][at], expected[at])
    assert out.isfinite().all()
    plain = [row.masked_fill(at, 1.0) for row in rows]  # elements beside them keep their bits
    assert torch.equal(out[:n][~at], backend.combine(plain, weights)[:n][~at])  # type: ignore[attr-defined]


@pytest.mark.parametrize("factor", [2.0, 1e20])
def test_combine_of_products_that_overflow(backend: object, factor: float) -> None:
    rows, at = spread([BIG, BIG, 1.0], 500, torch.float32)
    weights = torch.tensor([factor, -factor, 1.0]).double()
    out = backend.combine(rows, weights)[:500]  # type: ignore[attr-defined]
    assert torch.equal(out[at], torch.ones(int(at.sum())))


@pytest.mark.parametrize("out_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("n", LENGTHS)
def test_combine_out(backend: object, n: int, out_dtype: torch.dtype) -> None:
    rows, at = spread([BIG, -BIG], n, torch.bfloat16)
    rows = rows if out_dtype == torch.bfloat16 else [row.float() for row in rows]
    for grads, beta in ((rows, 1.0), ([row.bfloat16() for row in rows], 0.5)):
        out = torch.zeros(-(-n // 16) * 16, dtype=out_dtype)
        out[:n][at] = BIG
        expected = beta * out[:n].double() + grads[0].double() + grads[1].double()
        weights = torch.ones(2).double()
        backend.combine_out(grads, weights, out, beta)  # type: ignore[attr-defined]
        assert torch.equal(out[:n][at], expected[at].to(out_dtype))
        assert out.isfinite().all()


def test_what_does_not_fit_is_infinite(backend: object) -> None:
    rows = [torch.full((40,), BIG) for _ in range(2)]
    out = backend.combine(rows, torch.ones(2))  # type: ignore[attr-defined]
    assert (out[:40] == torch.inf).all()
    assert not out[40:].any()
    rows[0][7], rows[1][9] = torch.nan, -torch.inf
    out = backend.combine(rows, torch.tensor([1.0, -1.0]))  # type: ignore[attr-defined]
    assert out[7].isnan()
    assert out[9] == torch.inf
    assert out[:7].tolist() == [0.0] * 7


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("T", [3, 11])
def test_graddrop(backend: object, n: int, T: int) -> None:
    """Without a leak the direction is the sum of the positive or of the negative elements."""
    rows, at = spread([BIG, BIG, -BIG, *[0.0] * (T - 3)], n, torch.float32)
    seed, step = torch.tensor(3), torch.tensor(5)
    for leak, answers in ((0.0, [torch.inf, -BIG]), (1.0, [BIG])):
        shares = torch.full((T,), leak).double()
        out = backend.graddrop(rows, T, seed, step, shares)[:n]  # type: ignore[attr-defined]
        kept = torch.tensor(answers)
        assert torch.isin(out[at], kept).all()
        assert n < 1024 or len(out[at].unique()) == len(answers)
        assert torch.equal(out, reference.graddrop(rows, T, seed, step, shares)[:n])
    rows, at = spread([BIG, 0.6 * BIG, -0.6 * BIG], n, torch.float32)
    ones = torch.ones(3).double()
    out = backend.graddrop(rows, 3, seed, step, ones)[:n]  # type: ignore[attr-defined]
    assert (out[at] == torch.tensor(BIG)).all()


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize(("T", "trim"), [(3, 0), (5, 1), (12, 2)])
def test_trimmed_mean(backend: object, n: int, T: int, trim: int) -> None:
    rows, at = spread([BIG] * T, n, torch.float32)
    out = backend.trimmed_mean(rows, T, trim)[:n]  # type: ignore[attr-defined]
    assert (out[at] == torch.tensor(BIG)).all()
    assert out.isfinite().all()
    rows[0][0] = torch.nan
    assert backend.trimmed_mean(rows, T, trim)[0].isnan()  # type: ignore[attr-defined]


@pytest.mark.parametrize("n", LENGTHS)
def test_track_gram(backend: object, n: int) -> None:
    rows, at = spread([BIG, -BIG], n, torch.float32)
    state = torch.zeros(2, -(-n // 16) * 16)
    state[0, :n][at], state[1, :n][at] = -BIG, 1.0
    before = state.clone()
    scale, rate = torch.tensor([1.0, 2.0]).double(), torch.tensor(0.25).double()
    K = backend.track_gram(rows, 2, scale, rate, state)  # type: ignore[attr-defined]
    assert K.isfinite().all()
    for t in range(2):
        old = before[t, :n].double()
        close(state[t, :n], (old + rate * (scale[t] * rows[t].double() - old)).float())
    scale *= 1e3
    before = state.clone()
    K = backend.track_gram(rows, 2, scale, rate, state)  # type: ignore[attr-defined]
    assert K.isnan().all()
    assert torch.equal(state[:, :n][:, at], before[:, :n][:, at])
