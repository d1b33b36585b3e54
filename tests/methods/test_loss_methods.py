"""Loss methods against their papers' formulas, and one by one."""

from __future__ import annotations

import math

import pytest
import torch
from loss_formulas import FORMULAS, spread
from loss_methods import MAKE, batches, evaluate, run

import mtlkernels
from mtlkernels import (
    DWA,
    FAMO,
    IMTLL,
    RLW,
    SLAW,
    STCH,
    UW,
    LossMethod,
    Status,
)
from mtlkernels.methods import METHODS
from mtlkernels.methods.loss.go4align import group_means

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize("T", [1, 2, 5])
def test_values_and_weights_are_the_papers(name: str, T: int) -> None:
    method = MAKE[name](T)
    losses = batches(T, 8, seed=T)
    for step, (value, weights) in enumerate(run(method, losses)):
        expected, expected_weights = FORMULAS[name](losses[: step + 1].tolist())
        tolerance = (
            {"rtol": 1e-6, "atol": 1e-6} if "go4" in name else {"rtol": 1e-11, "atol": 1e-14}
        )
        want = torch.tensor(expected, dtype=torch.float64)
        torch.testing.assert_close(value, want, rtol=tolerance["rtol"], atol=1e-11)
        torch.testing.assert_close(
            weights, torch.tensor(expected_weights, dtype=torch.float64), **tolerance
        )
        assert method.status.tolist() == [0] * T


def test_every_loss_method_is_tested_here() -> None:
    here = {type(make(2)) for make in MAKE.values()}
    assert here == {cls for cls in METHODS.values() if issubclass(cls, LossMethod)}
    assert FORMULAS.keys() == MAKE.keys() - {"rlw", "rlw-sum", "relobralo"}


# ------------------------------------------------------------------------------- one by one


def test_rlw_draws_softmax_of_standard_normals_from_seed_and_step() -> None:
    T = 2000
    method, losses = RLW(seed=3), torch.ones(T)
    x = evaluate(method, losses)[1].log()
    x = x - x.mean()  # the softmax keeps normals up to a shift
    assert abs(float(x.std()) - 1) < 0.06
    assert abs(float((x**3).mean())) < 0.2
    assert abs(float((x**4).mean()) - 3) < 0.6
    first, second = (evaluate(RLW(seed=3), torch.ones(4))[1] for _ in range(2))
    assert torch.equal(first, second)
    again = [evaluate(method, torch.ones(4))[1] for _ in range(3)]
    assert len({tuple(w.tolist()) for w in [first, *again]}) == 4
    assert not torch.equal(first, evaluate(RLW(seed=4), torch.ones(4))[1])
    torch.testing.assert_close(first.sum(), torch.tensor(1.0))
    torch.testing.assert_close(evaluate(RLW("sum", seed=3), torch.ones(4))[1], 4 * first)


def test_rlw_draws_these_numbers() -> None:
    """Pinned, so that no machine and no version draws others: from SplitMix64 in Python's ints."""
    mask = (1 << 64) - 1

    def mix(x: int) -> int:
        x = (x + 0x9E3779B97F4A7C15) & mask
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
        return x ^ (x >> 31)

    for seed, step in ((0, 0), (7, 12345)):
        start = mix((mix(seed) + step) & mask)
        draws = [(mix((start + k) & mask) >> 11) / 2**53 for k in range(6)]
        expected = [
            math.sqrt(-2 * math.log(u + 2**-53)) * math.cos(2 * math.pi * v)
            for u, v in zip(draws[::2], draws[1::2], strict=True)
        ]
        got = mtlkernels.ops.normal_numbers(torch.tensor(seed), torch.tensor(step), 3)
        torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64))


def test_slaw_does_not_cancel_on_large_losses_that_hardly_move() -> None:
    """EMA(L^2) - EMA(L)^2 of losses near 1e6 holds no digit of a deviation of 1e-3."""
    method = SLAW()
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        move = torch.randn(1, generator=generator).double()
        _, weights = evaluate(method, torch.cat([1e6 + 1e-3 * move, 1 + 1e-3 * move]))
    torch.testing.assert_close(weights, torch.ones(2).double(), rtol=1e-4, atol=0)


@pytest.mark.parametrize("name", ["si", "gls", "stch", "igb", "slaw", "dwa", "famo"])
def test_scale_of_one_loss(name: str) -> None:
    """Each weighted gradient, w_i times the factor of L_i, changes by a common factor at most."""
    losses = batches(3, 6)
    factors = torch.tensor([1.0, 64.0, 1.0]).double()
    plain, scaled = (
        run(MAKE[name](3), x)[-1][1] * f for x, f in ((losses, 1.0), (losses * factors, factors))
    )
    common = {"gls": 64 ** (1 / 3), "si": 1.0, "stch": 1.0, "igb": 1.0}.get(name)
    if name == "dwa":  # its weights do not change, so the gradient does
        torch.testing.assert_close(scaled, plain * factors)
        return
    ratio = scaled / plain
    torch.testing.assert_close(ratio, ratio[:1].expand(3), rtol=1e-5, atol=0)
    if common is not None:
        torch.testing.assert_close(ratio, torch.full((3,), common).double())


def test_stch_at_mu_one_in_closed_form() -> None:
    z, L = [2.0, 3.0, 5.0], torch.tensor([1.0, 4.0, 0.5]).double()
    w = 3 / (torch.tensor(z).double() * (L / torch.tensor(z)).sum())
    torch.testing.assert_close(evaluate(STCH(nadir=z), L)[1], w)


def test_learned_scalars_reach_their_optimum() -> None:
    L = torch.tensor([0.1, 1.0, 10.0])
    for method, weights in (
        (UW(3), 1 / (2 * L)),
        (UW(3, factor=1.0), 1 / (2 * L)),
        (IMTLL(3), 1 / L),
    ):
        optimizer = torch.optim.Adam(method.parameters(), lr=0.05)
        for _ in range(600):
            optimizer.zero_grad()
            method(L).backward()
            optimizer.step()
        got = evaluate(method, L)[1]
        torch.testing.assert_close(got, weights, rtol=1e-2, atol=0)


def test_famo_without_update_stays_and_with_it_shifts_weight_to_the_slow() -> None:
    method = FAMO(lr=0.1, gamma=0.0)
    L = torch.tensor([1.0, 1.0]).double()
    for _ in range(3):
        assert evaluate(method, L)[1].tolist() == pytest.approx([0.5, 0.5])
    for _ in range(10):
        evaluate(method, L)
        method.update(torch.tensor([0.5, 0.99]))
    z = method.xi.softmax(0)
    assert z[1] > 0.6
    torch.testing.assert_close(evaluate(method, L)[1].sum(), torch.tensor(1.0).double())


def test_famo_says_what_it_cannot_take() -> None:
    method = FAMO()
    with pytest.raises(ValueError, match="no step to compare with"):
        method.update(torch.ones(2))
    value, weights = evaluate(method, torch.tensor([1.0, -0.5]))
    assert value.isfinite()
    assert weights.tolist() == [1, 0]
    assert method.status.tolist() == [0, Status.INVALID_LOSS]
    for before, after in (([1.0, -0.5], [1.0, 1.0]), ([1.0, 1.0], [1.0, -1.0])):
        evaluate(method, torch.tensor(before))
        method.update(torch.tensor(after))
        assert method.status.tolist() == [0, Status.INVALID_LOSS]
        assert method.xi.tolist() == [0, 0]


def test_go4align_finds_the_best_clusters() -> None:
    v = torch.tensor([1.0, 10.0, 1.2, 11.0, 0.8, 30.0]).double()
    expected = torch.tensor([1.0, 10.5, 1.0, 10.5, 1.0, 30.0]).double()
    torch.testing.assert_close(group_means(v, 3), expected)
    torch.testing.assert_close(group_means(v, 1), v.mean().expand(6))
    torch.testing.assert_close(group_means(v, 6), v)
    torch.testing.assert_close(group_means(torch.full((4,), 2.0), 3), torch.full((4,), 2.0))
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        v = torch.randn(5, generator=generator).double().exp()
        best = min(
            sum(spread(v[labels == k]) for k in range(3))
            for labels in torch.cartesian_prod(*[torch.arange(3)] * 5)
        )
        got = float((v - group_means(v, 3)).square().sum())
        assert got == pytest.approx(best, rel=1e-12, abs=1e-15)


def test_dwa_says_where_a_window_was_zero() -> None:
    method = DWA(window=1)
    for row in ([0.0, 1.0], [1.0, 1.0]):
        evaluate(method, torch.tensor(row))
    value, weights = evaluate(method, torch.ones(2))
    assert value == 1
    assert weights.tolist() == [0, 1]
    assert method.status.tolist() == [Status.INVALID_LOSS, 0]
    assert evaluate(method, torch.ones(2))[0] == 2
