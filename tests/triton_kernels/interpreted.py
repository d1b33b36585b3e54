"""Triton's kernels in its interpreter: run by test_triton.py, which sets the environment."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import torch
from certificates import cagrad_certificate
from hard_grams import KINDS, hard_gram
from inputs import DTYPES, sample
from torch import Tensor

import mtlkernels
from mtlkernels import ops, reference
from mtlkernels.triton_kernels import OPS, launch, launchers

SERVED = ["gram", "combine", "combine_out", "pcgrad", "cagrad"]


@pytest.mark.parametrize("name", SERVED)
def test_triton_serves(name: str) -> None:
    assert mtlkernels.backends()["cpu"][name]["serves"] == "triton"


@pytest.mark.parametrize("name", ["mgda", "avgnorm"])
def test_who_serves_the_others_is_told(name: str) -> None:
    told = mtlkernels.backends()["cpu"][name]
    assert told["serves"] == "reference"
    assert told["others"]["triton"] == "there is no triton kernel for this op"


def test_padding_is_zero_beside_weights_that_are_nan() -> None:
    out = ops.combine([torch.ones(5), torch.ones(17)], torch.tensor([torch.nan]))
    assert out.isnan().nonzero().flatten().tolist() == [*range(5), *range(16, 33)]
    assert not out[5:16].any()
    assert not out[33:].any()


def test_absent_rows_are_zeros_beside_anything() -> None:
    none, x = torch.empty(0), torch.ones(20)
    bad = torch.full((20,), torch.nan)
    assert torch.equal(ops.combine([none, x], torch.tensor([torch.nan, 2.0]))[:20], 2 * x)
    K = ops.gram([bad, x, none], 3)
    assert K[1:, 1:].tolist() == [[20.0, 0.0], [0.0, 0.0]]
    assert K[2].tolist() == [0.0, 0.0, 0.0]


def test_beta_is_a_double() -> None:
    out = torch.ones(16, dtype=torch.float64)
    ops.combine_out([torch.zeros(16, dtype=torch.float64)], torch.ones(1), out, 0.1)
    assert out.tolist() == [0.1] * 16


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("T", [1, 2, 5, 19])
@pytest.mark.parametrize("mean", [False, True])
def test_pcgrad(kind: str, T: int, mean: bool) -> None:
    K = hard_gram(kind, T, 3)
    K[T // 2] = K[:, T // 2] = 0
    order = ops.visiting_order(torch.tensor(3), torch.tensor(1), T)
    weights, status = ops.pcgrad(K, order, mean)
    expected, expected_status = reference.pcgrad(K, order, mean)
    assert torch.equal(status, expected_status)
    torch.testing.assert_close(weights, expected, rtol=1e-9, atol=1e-12, equal_nan=True)


def test_pcgrad_beside_a_gradient_that_is_not_finite() -> None:
    K = torch.eye(4, dtype=torch.float64)
    K[2] = K[:, 2] = torch.nan
    order = ops.visiting_order(torch.tensor(3), torch.tensor(1), 4)
    weights, status = ops.pcgrad(K, order)
    assert weights.isnan().all()
    assert status.tolist() == [0, 0, mtlkernels.Status.NON_FINITE, 0]


def test_pcgrad_flags_what_is_no_gram_matrix() -> None:
    order = ops.visiting_order(torch.tensor(3), torch.tensor(1), 5)
    for entry, value, flags in (
        ((1, 1), -1.0, [0, 128, 0, 0, 0]),
        ((0, 4), 0.5, [128, 0, 0, 0, 128]),
    ):
        K = torch.eye(5, dtype=torch.float64)
        K[2, 3] = 1e-7
        K[entry] = value
        weights, status = ops.pcgrad(K, order)
        assert weights.isnan().all()
        assert status.tolist() == flags


@pytest.mark.parametrize("entry", [(1, 1), (0, 4), (2, 0)])
@pytest.mark.parametrize("rescale", [0, 1, 2])
def test_cagrad_flags_what_is_no_gram_matrix(entry: tuple[int, int], rescale: int) -> None:
    """NaN and the status, as the native solver on a device: never a direction from half a K."""
    K = torch.eye(5, dtype=torch.float64)
    K[entry] = -1.0 if entry[0] == entry[1] else 0.5
    weights, status = ops.cagrad(K, 0.4, ops.Rescale(rescale))
    assert weights.isnan().all()
    flagged = [mtlkernels.Status.INVALID_GRAM if i in entry else 0 for i in range(5)]
    assert status.tolist() == flagged


def test_pcgrad_takes_no_more_tasks_than_fit() -> None:
    with pytest.raises(RuntimeError, match="gram has 65 tasks"):
        launchers.pcgrad(torch.eye(65).double(), torch.zeros(65, 64).long(), False)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("T", [1, 2, 5, 11])
def test_cagrad(kind: str, T: int) -> None:
    """Weights differ along what K does not see, so lengths are compared, and optimality."""
    K = hard_gram(kind, T, 3)
    if T > 2:
        K[1] = K[:, 1] = 0
    weights, status = ops.cagrad(K, 0.4, ops.Rescale.NONE)
    expected, expected_status = reference.cagrad(K, 0.4, 0, False)
    assert torch.equal(status, expected_status)
    there = K.diagonal() > 0
    assert weights[~there].tolist() == [0.0] * int((~there).sum())
    K, weights, expected = K[there][:, there], weights[there], expected[there]
    assert cagrad_certificate(K, weights, 0.4) <= 1e-9
    gap = weights - expected
    assert (gap @ K @ gap).clamp_min(0).sqrt() <= 1e-9 * (expected @ K @ expected).sqrt()


@pytest.mark.parametrize("c", [-0.1, torch.inf, torch.nan])
def test_cagrad_refuses_a_radius_that_is_none(c: float) -> None:
    with pytest.raises(RuntimeError, match="c must be finite and at least 0"):
        ops.cagrad(torch.eye(2).double(), c)


class NotedTable:
    """A substitute for a table on a device, which records the streams that use it."""

    def __init__(self) -> None:
        self.streams: list[object] = []

    def record_stream(self, stream: object) -> None:
        self.streams.append(stream)


def test_a_table_is_held_for_every_other_stream_that_reads_it() -> None:
    table = NotedTable()
    blocks = launch.Blocks(table, 1, 16, stream="the first")
    for stream in ("the first", "a second", None):
        launch._hold_for(blocks, stream)
    assert table.streams == ["a second"]


def test_capture_is_asked_of_the_gradients_own_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Device 1 captures while device 0 is the current one, and the other way round."""
    current = [0]

    @contextlib.contextmanager
    def device(chosen: torch.device) -> Iterator[None]:
        before, current[0] = current[0], chosen.index
        yield
        current[0] = before

    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: current[0] == 1)
    assert launch._is_capturing(torch.device("cuda", 1))
    assert not launch._is_capturing(torch.device("cuda", 0))
    assert not launch._is_capturing(torch.device("cpu"))


@pytest.mark.parametrize("count", [1, 32, 33, 70])
def test_addresses_by_value(count: int) -> None:
    """What a CUDA-graph capture launches in place of a copy."""
    addresses = [(1 << 33) + 16 * i for i in range(count)]
    assert launch._by_value(addresses, torch.device("cpu")).tolist() == addresses


def test_a_direction_can_be_as_misaligned_as_it_likes() -> None:
    x = torch.randn(3000)
    out = torch.zeros(3009)[1:]
    ops.combine_out([x], torch.ones(1), out)
    assert torch.equal(out[:3000], x)


# ------------------------------------------------------------------------------------ GradDrop


def philox(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x32-10, from the paper."""
    c, k = list(counter), list(key)
    for _ in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(b >> 32) ^ c[1] ^ k[0], b & 0xFFFFFFFF, (a >> 32) ^ c[3] ^ k[1], a & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c


def test_philox_known_answers() -> None:
    """The published vectors of the zero and of the all-ones input."""
    assert philox([0] * 4, [0] * 2) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    ones = 0xFFFFFFFF
    assert philox([ones] * 4, [ones] * 2) == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]


def halves(x: int) -> list[int]:
    return [x & 0xFFFFFFFF, x >> 32 & 0xFFFFFFFF]


def expected_graddrop(rows: list[Tensor], at: int, seed: int, step: int, leak: Tensor) -> Tensor:
    """One parameter at place `at` of the direction, in its rows' dtype."""
    n = len(rows[0])
    words = [philox(halves(k // 4) + halves(step), halves(seed))[k % 4] for k in range(at, at + n)]
    tau = torch.tensor([(2 * (w >> 8) + 1 - 2**24) / 2**24 for w in words], dtype=rows[0].dtype)
    S, A, d = torch.zeros(3, n, dtype=rows[0].dtype)
    for x in rows:
        S, A = S + x, A + x.abs()
    for x, share in zip(rows, leak.to(S.dtype), strict=True):
        wins = torch.where(x > 0, (tau * A < S) | (S == A), (tau * A > S) | (S == -A)) & (x != 0)
        d += torch.where(wins, 1.0, share) * x
    return d


@pytest.mark.parametrize("seed", [0, 5, -(2**40) - 3])
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_graddrop(seed: int, dtype: torch.dtype) -> None:
    grads, T = sample("ordinary", dtype)
    leak, step = torch.tensor([0.0, 0.25, 1.0]).double(), 2**33 + 1
    out = launchers.graddrop(grads, T, torch.tensor(seed), torch.tensor(step), leak)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    for p, at in enumerate([0, 48, 64]):
        rows = [g.reshape(-1).to(wide) for g in grads[p::3]]
        d = expected_graddrop(rows, at, seed, step, leak)
        # What was dropped is exact: a wrong decision is off by whole elements, not by rounding.
        tolerance = 4 * torch.finfo(dtype).eps * sum(row.abs() for row in rows)
        assert ((out[at : at + len(d)].to(wide) - d).abs() <= tolerance).all()
    assert out.dtype == dtype
    assert not out[35:48].any()


def graddrop(*rows: Tensor, leak: float = 0.0) -> Tensor:
    shares = torch.full((len(rows),), leak, dtype=torch.float64)
    return launchers.graddrop(list(rows), len(rows), torch.tensor(1), torch.tensor(0), shares)


def test_graddrop_keeps_what_all_agree_on() -> None:
    x = torch.randn(3000)
    assert torch.equal(graddrop(x)[:3000], x)
    assert torch.equal(graddrop(x, x)[:3000], 2 * x)
    assert not graddrop(0 * x, 0 * x).any()
    tiny = torch.full((64,), torch.finfo(torch.float32).smallest_normal / 2**20)
    assert torch.equal(graddrop(tiny, torch.empty(0)), tiny)


def test_graddrop_drops_by_the_share_of_the_signs() -> None:
    kept = graddrop(torch.full((20000,), 3.0), torch.full((20000,), -1.0))
    assert set(kept.tolist()) == {3.0, -1.0}
    assert abs((kept == 3.0).float().mean() - 0.75) < 0.02


def test_graddrop_of_sums_that_overflow() -> None:
    big = torch.full((40,), 3e38)
    assert torch.equal(graddrop(big, big, -big, leak=1.0)[:40], big)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_graddrop_hides_nothing(bad: float) -> None:
    x, y = torch.randn(40), torch.randn(40)
    x[7] = bad
    finite = graddrop(x, y)[:40].isfinite()
    assert finite.logical_not().nonzero().flatten().tolist() == [7]


def test_every_op_here_is_launched_by_its_own_name() -> None:
    assert set(SERVED) | {"graddrop"} == OPS.keys()
