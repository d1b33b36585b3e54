"""The ops of the row methods: GradDrop's draws, trimmed means, tracked rows, excess risks."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from inputs import FEW, SAMPLES, sample
from row_formulas import (
    check_rows,
    expected_graddrop,
    flat_rows,
    fresh_state,
    halves,
    philox,
    threshold,
)
from torch import Tensor

from mtlkernels import ops, reference
from mtlkernels.reference import draws

pytestmark = pytest.mark.usefixtures("one_thread", "poisoned")

# Published with Random123: counter and key all zeros, all ones, and digits of pi.
KNOWN = [
    ("0 0 0 0", "0 0", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    (4 * "ffffffff ", 2 * "ffffffff ", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    (
        "243f6a88 85a308d3 13198a2e 03707344",
        "a4093822 299f31d0",
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


def scalar(x: int) -> Tensor:
    return torch.tensor(x, dtype=torch.int64)


def drop(*rows: Tensor, leak: float = 0.0, seed: int = 3, step: int = 0) -> Tensor:
    leaks = torch.full((len(rows),), leak, dtype=torch.float64)
    return ops.graddrop(list(rows), len(rows), scalar(seed), scalar(step), leaks)


def random_rows(T: int, n: int, seed: int = 0) -> list[Tensor]:
    return list(torch.randn(T, n, generator=torch.Generator().manual_seed(seed)))


def half(x: float) -> Tensor:
    return torch.tensor(x, dtype=torch.float64)


# ------------------------------------------------------------------------------------- Philox


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN)
def test_philox_gives_the_published_words(counter: str, key: str, answer: str) -> None:
    assert philox(words(counter), words(key)) == words(answer)
    low, high, *step = words(counter)
    group, number, seed = (
        torch.tensor(a | b << 32, dtype=torch.uint64).view(torch.int64)
        for a, b in ((low, high), step, words(key))
    )
    drawn = draws.philox(group.reshape(1), number, seed)
    assert [int(word) for word in drawn] == words(answer)


def test_thresholds_lie_inside_and_are_symmetric() -> None:
    numbers = draws.thresholds(0, 1 << 16, scalar(1), scalar(2))
    assert (numbers.abs() < 1).all()
    assert (numbers * 2**24 % 2 == 1).all()
    assert torch.equal(numbers, numbers.float().double())
    assert abs(numbers.mean()) < 0.01
    assert abs(numbers.square().mean() - 1 / 3) < 0.01
    want = [float(threshold(k, 1, 2)) for k in range(40)]
    assert numbers[:40].tolist() == want


# ------------------------------------------------------------------------------------ GradDrop


@pytest.mark.parametrize("name", [*FEW, "numel_511", "tasks_8"])
def test_graddrop_is_the_rule_on_exact_numbers(name: str, float_dtype: torch.dtype) -> None:
    grads, T = sample(name, float_dtype)
    leak = torch.linspace(0, 1, T, dtype=torch.float64)
    seed, step = -987654321987, (7 << 33) + 4
    got = ops.graddrop(grads, T, scalar(seed), scalar(step), leak)
    want = expected_graddrop(grads, T, seed, step, leak)
    torch.testing.assert_close(got, want.to(got.dtype))


@pytest.mark.parametrize("name", [name for name in SAMPLES if name != "streamed"])
def test_every_sample(name: str, float_dtype: torch.dtype) -> None:
    check_rows(*sample(name, float_dtype))


def test_a_direction_stored_past_the_cache() -> None:
    check_rows(*sample("streamed", torch.bfloat16))


def test_graddrop_expectation() -> None:
    """Over the steps the mean is P times the positive part plus 1 - P times the negative one."""
    G = torch.stack(random_rows(3, 40)).double()
    P = (1 + G.sum(dim=0) / G.abs().sum(dim=0)) / 2
    want = P * G.clamp_min(0).sum(dim=0) + (1 - P) * G.clamp_max(0).sum(dim=0)
    steps = 4000
    mean = sum(drop(*G, step=k)[:40] for k in range(steps)) / steps
    deviation = G.abs().sum(dim=0) / 2 / math.sqrt(steps)
    assert ((mean - want).abs() <= 4 * deviation).all()


def test_graddrop_keeps_what_agrees() -> None:
    (g,) = random_rows(1, 500)
    tiny = g * 1e-44  # denormal
    for row in (g, tiny, torch.zeros(500), g.double() * 1e-320):
        assert torch.equal(drop(row), torch.nn.functional.pad(row, (0, 12)))
        assert torch.equal(drop(row, row, row)[:500], row + row + row)
        assert torch.equal(drop(row, 0 * row)[:500], row)


def test_graddrop_of_opposite_gradients_takes_one_of_them() -> None:
    (g,) = random_rows(1, 4000)
    d = drop(g, -g)[:4000]
    assert torch.equal(d.abs(), g.abs())
    assert 1800 < (d == g).sum() < 2200


def test_graddrop_takes_the_tasks_in_any_order() -> None:
    rows = [g.mul(64).round() for g in random_rows(5, 300)]  # sums are exact
    leak = torch.linspace(0, 1, 5).double() * 0.75
    d = ops.graddrop(rows, 5, scalar(1), scalar(1), leak)
    for shift in range(1, 5):
        turned = ops.graddrop(
            rows[shift:] + rows[:shift], 5, scalar(1), scalar(1), leak.roll(-shift)
        )
        torch.testing.assert_close(d, turned, rtol=1e-6, atol=1e-5)
        turned = drop(*rows[shift:], *rows[:shift])
        assert torch.equal(drop(*rows), turned)


@pytest.mark.parametrize("exponent", [-90, -20, 20, 90])
def test_graddrop_is_scale_free(exponent: int) -> None:
    rows = random_rows(4, 1000)
    scaled = [g * 2.0**exponent for g in rows]
    assert torch.equal(drop(*scaled), drop(*rows) * 2.0**exponent)


def test_graddrop_leak_keeps_the_rest() -> None:
    rows = random_rows(3, 700)
    assert torch.equal(drop(*rows, leak=1.0)[:700], rows[0] + rows[1] + rows[2])
    total = sum(rows)
    between = 0.75 * drop(*rows)[:700] + 0.25 * total
    torch.testing.assert_close(drop(*rows, leak=0.25)[:700], between)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("leak", [0.0, 0.5])
def test_graddrop_passes_on_what_is_not_finite(bad: float, leak: float) -> None:
    for where in (0, 3, 640):
        rows = random_rows(3, 641)
        rows[1][where] = bad
        finite = drop(*rows, leak=leak)[:641].isfinite()
        assert not finite[where]
        assert finite.sum() == 640


def test_a_draw_belongs_to_the_place_the_seed_and_the_step() -> None:
    rows = random_rows(2, 64)
    cut = [piece for row in rows for piece in row.split(16)]
    together = ops.graddrop(cut, 2, scalar(3), scalar(0), torch.zeros(2).double())
    assert torch.equal(together, drop(*rows))
    for other in (drop(*rows, seed=4), drop(*rows, step=1), drop(*rows, seed=3 + (1 << 32))):
        assert not torch.equal(other, drop(*rows))
    assert not torch.equal(drop(*rows, step=1 << 40), drop(*rows))
    assert halves(-1) == [2**32 - 1, 2**32 - 1]


# -------------------------------------------------------------------------------- trimmed mean


def test_trimmed_mean_by_hand() -> None:
    columns = torch.tensor([[1.0, 5, 2, -9, 3], [0, 0, 0, 0, 7], [-1, -2, -3, -4, -5]])
    rows = list(columns.T.contiguous())
    assert ops.trimmed_mean(rows, 5, 0)[:3].tolist() == pytest.approx([0.4, 1.4, -3])
    assert ops.trimmed_mean(rows, 5, 1)[:3].tolist() == [2, 0, -3]
    assert ops.trimmed_mean(rows, 5, 2)[:3].tolist() == [2, 0, -3]


def test_trimmed_mean_trims_infinities_and_passes_on_nan() -> None:
    rows = random_rows(5, 300)
    rows[2][7], rows[3][7], rows[0][299], rows[4][9] = math.inf, -math.inf, math.inf, math.nan
    d = ops.trimmed_mean(rows, 5, 1)[:300]
    assert d[9].isnan()
    assert d.isfinite().sum() == 299
    assert ops.trimmed_mean(rows, 5, 0)[299] == math.inf


def test_trimmed_mean_takes_an_absent_gradient_for_zeros() -> None:
    rows, none = random_rows(4, 33), torch.empty(0)
    d = ops.trimmed_mean([rows[0], none, *rows[1:]], 5, 1)
    assert torch.equal(d, ops.trimmed_mean([rows[0], torch.zeros(33), *rows[1:]], 5, 1))


# ------------------------------------------------------------------------------- tracked rows


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_bad_element_stays_and_its_task_is_told(bad: float) -> None:
    for where in (0, 5000, 9000):
        rows = random_rows(3, 9001)
        state = fresh_state(rows, 3)
        ops.track_gram(rows, 3, torch.ones(3).double(), half(0.5), state)
        before = state.clone()
        rows[1][where] = bad
        K = ops.track_gram(rows, 3, torch.ones(3).double(), half(0.5), state)
        assert state.isfinite().all()
        assert state[1, where] == before[1, where]
        assert (state[:, :9001] != before[:, :9001]).sum() == 3 * 9001 - 1
        assert K.isfinite().tolist() == [[True, False, True], 3 * [False], [True, False, True]]

        state = fresh_state(rows, 3)
        e = ops.excess(rows, 3, 1e-7, state)
        assert e.isfinite().tolist() == [True, False, True]
        assert state.isfinite().all()
        assert state[1, where] == 0


def test_a_scale_of_nan_leaves_the_task_alone() -> None:
    rows = random_rows(2, 100)
    state = torch.ones(2, 112)
    scale = torch.tensor([math.nan, 1], dtype=torch.float64)
    K = ops.track_gram(rows, 2, scale, half(0.5), state)
    assert torch.equal(state[0], torch.ones(112))
    assert K.isfinite().tolist() == [[False, False], [False, True]]


def test_tracking_keeps_the_padding_and_notes_the_write() -> None:
    grads, T = sample("absent_in_some_tasks", torch.float32)
    state = fresh_state(grads, T)
    version = state._version
    ops.track_gram(grads, T, torch.ones(T).double(), half(1.0), state)
    assert state._version > version
    assert torch.equal(state.double(), flat_rows(grads, T))


def test_excess_without_epsilon_counts_no_zeros() -> None:
    rows = [torch.tensor([0.0, 2.0, -3.0]), torch.zeros(3)]
    state = fresh_state(rows, 2)
    assert ops.excess(rows, 2, 0.0, state).tolist() == [5, 0]
    assert state[:, :3].tolist() == [[0, 4, 9], [0, 0, 0]]


# ------------------------------------------------------------------------------------ refusals

CALLS: dict[str, Callable[[list[Tensor]], object]] = {
    "graddrop": lambda g: ops.graddrop(g, 2, scalar(0), scalar(0), torch.zeros(2).double()),
    "trimmed_mean": lambda g: ops.trimmed_mean(g, 2, 0),
    "track_gram": lambda g: ops.track_gram(
        g, 2, torch.ones(2).double(), half(1), torch.zeros(2, 16)
    ),
    "excess": lambda g: ops.excess(g, 2, 0.0, torch.zeros(2, 16)),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_lists_that_are_none(call: Callable[[list[Tensor]], object]) -> None:
    with pytest.raises(ValueError, match="the gradient list is empty"):
        call([])
    with pytest.raises(RuntimeError, match="expected a task-major list"):
        call(random_rows(3, 5))
    with pytest.raises(RuntimeError, match="another dtype than the first"):
        call([torch.ones(5), torch.ones(5).double()])


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_no_op_is_differentiable(call: Callable[[list[Tensor]], object]) -> None:
    grads = [g.requires_grad_() for g in random_rows(2, 5)]
    with pytest.raises(RuntimeError, match="is not differentiable: detach the gradients"):
        call(grads).sum().backward()
    with torch.no_grad():
        assert not call(grads).requires_grad


@pytest.mark.parametrize("backend", [ops, reference], ids=["ops", "reference"])
def test_numbers_that_do_not_fit(backend) -> None:
    g = random_rows(2, 5)
    zero, leak = scalar(0), torch.zeros(2).double()
    with pytest.raises(RuntimeError, match="leak must be a contiguous float64 vector of 2"):
        backend.graddrop(g, 2, zero, zero, leak.float())
    with pytest.raises(RuntimeError, match="seed and step must be int64 scalars"):
        backend.graddrop(g, 2, zero.double(), zero, leak)
    with pytest.raises(RuntimeError, match="trim = 1 leaves none of 2 values"):
        backend.trimmed_mean(g, 2, 1)
    with pytest.raises(RuntimeError, match="rate must be a float64 scalar"):
        backend.track_gram(g, 2, leak, scalar(1), torch.zeros(2, 16))
    for state in (torch.zeros(2, 15), torch.zeros(3, 16), torch.zeros(2, 16).double()):
        with pytest.raises(RuntimeError, match="state must be a contiguous matrix of 2 x 16"):
            backend.track_gram(g, 2, leak, half(1), state)
        with pytest.raises(RuntimeError, match="state must be a contiguous matrix of 2 x 16"):
            backend.excess(g, 2, 0.0, state)
