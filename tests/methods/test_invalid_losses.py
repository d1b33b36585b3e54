"""A loss that a method cannot take: the task takes no part in the step, the others go on."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from contract import EVERY_METHOD, Net
from contract import batches as inputs
from gram_methods import GRAM_METHODS, TWO_TASKS
from hard_grams import random_rows
from loss_methods import FLOOR, MAKE, batches, evaluate
from row_cases import batch, flat
from torch import Tensor

import mtlkernels
from mtlkernels import (
    CRMOGM,
    DBMTL,
    DWA,
    FAMO,
    NTKMTL,
    PCD,
    RLW,
    UW,
    CAGrad,
    FairGrad,
    GradNorm,
    LogLosses,
    MoCo,
    MTLOptimizer,
    Normalized,
    PerPart,
    Status,
    UPGrad,
)

pytestmark = pytest.mark.usefixtures("one_thread")

T = 3
at_each = pytest.mark.parametrize("at", range(T))
WRAP = {
    "LogLosses": LogLosses,
    "loss": lambda method: Normalized(method, by="loss"),
    "loss+": lambda method: Normalized(method, by="loss+"),
    "loss, kept": lambda method: Normalized(method, by="loss", keep_weights=True),
}
EVERY = {
    **{name: make for name, (tasks, make) in EVERY_METHOD.items() if tasks == T},
    **{f"loss {name}": (lambda name=name: MAKE[name](T)) for name in MAKE},
    **{f"{wrap} of FairGrad": (lambda w=w: w(FairGrad())) for wrap, w in WRAP.items()},
    "LogLosses of GradNorm": lambda: LogLosses(GradNorm()),
    "CRMOGM of LogLosses": lambda: CRMOGM(LogLosses(CAGrad())),
    "DBMTL on averages": lambda: DBMTL(0.9, log_losses=True),
    "DWA of one step": lambda: DWA(window=1),
}


def state_of(method, at: int) -> dict[str, Tensor]:
    """What a method keeps of one task."""
    return {k: v[at].clone() for k, v in method.state_dict().items() if v.dim() and len(v) == T}


# ------------------------------------------------------------------- a training, every method


@pytest.mark.parametrize(("at", "when"), [(0, (0, 1, 2, 3, 4, 5)), (1, (0,)), (2, (3, 4))])
@pytest.mark.parametrize("make", EVERY.values(), ids=EVERY.keys())
def test_a_hinge_loss_at_zero_leaves_everything_finite(make, at: int, when) -> None:
    """In float32, without a scaler, with momentum: one NaN would stay for good."""
    model, method = Net(T), make()
    parts = [[model.trunk.weight]] if isinstance(method, PerPart) else None
    base = torch.optim.Adam([*model.parameters(), *method.parameters()], lr=1e-2)
    optimizer = MTLOptimizer(base, method, parts=parts)
    for step, x in enumerate(inputs(6)):
        losses = model(x)
        if step in when:
            losses[at] = torch.relu(losses[at] - 1e6)
        optimizer.zero_grad()
        report = optimizer.backward(losses)
        assert report.weights is None or report.weights.isfinite().all()
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        assert all(grad.isfinite().all() for grad in grads)
        if at > 0 or not isinstance(method, PCD):  # which stops where its primary task is done
            assert grads[0].any()
        optimizer.step()
        if isinstance(method, FAMO):
            method.update(torch.stack(model(x)))
    assert all(v.isfinite().all() for v in model.state_dict().values())


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("make", EVERY.values(), ids=EVERY.keys())
def test_a_loss_that_is_not_finite_reaches_the_gradients_also_beside_a_zero(make, value) -> None:
    model, method = Net(T), make()
    losses = model(inputs(1)[0])
    losses = [losses[0] * value, losses[1] * 0, losses[2]]
    parts = [[model.trunk.weight]] if isinstance(method, PerPart) else None
    mtlkernels.backward(losses, list(model.parameters()), method, parts=parts)
    assert not model.trunk.weight.grad.isfinite().all()


# ------------------------------------------------------------------------------- loss methods


@at_each
@pytest.mark.parametrize("name", FLOOR)
@pytest.mark.parametrize("below", [0.0, 2.0])
def test_the_step_is_that_of_the_other_tasks(name: str, below: float, at: int) -> None:
    """A task that is never valid: the same weights, scalar and state as if it did not exist."""
    method, twin = MAKE[name](T), MAKE[name](T - 1)
    others = [t for t in range(T) if t != at]
    if hasattr(twin, "total") and len(twin.total):  # a nadir of one's own, by task
        twin.total.copy_(method.total[others])
    before = state_of(method, at)
    losses = batches(T, 7)
    for now, after in pairwise(losses):
        bad, bad_after = now.clone(), after.clone()
        bad[at] = bad_after[at] = FLOOR[name] - below
        scalar, weights = evaluate(method, bad)
        want, expected = evaluate(twin, now[others])
        torch.testing.assert_close(scalar, want, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(weights[others], expected, rtol=1e-10, atol=0)
        assert weights[at] == 0
        flags = [Status.INVALID_LOSS if t == at else 0 for t in range(T)]
        assert method.status.tolist() == flags
        if isinstance(method, FAMO):
            method.update(bad_after)
            twin.update(after[others])
            assert method.status.tolist() == flags
    for name, value in before.items():
        if name not in ("missed", "before"):
            now = state_of(method, at)[name]
            assert torch.equal(now, value) or (name == "log_p" and now.isfinite()), name


@pytest.mark.parametrize("name", FLOOR)
def test_state_of_the_task_stays_and_goes_on_where_it_was(name: str) -> None:
    """Invalid in one step: what is kept of the task is what it was, to the bit."""
    method = MAKE[name](T)
    losses = batches(T, 8)
    for step, (now, after) in enumerate(pairwise(losses)):
        before = state_of(method, 1)
        bad = now.clone()
        if step == 4:
            bad[1] = FLOOR[name]
        assert evaluate(method, bad)[1].isfinite().all()
        if isinstance(method, FAMO):
            method.update(after)
        if step == 4:
            kept = state_of(method, 1)
            for key in before.keys() - {"missed", "before"}:
                assert torch.equal(kept[key], before[key]), key
    assert (method.status == 0).all()


@pytest.mark.parametrize("name", FLOOR)
def test_without_a_valid_loss_nothing_moves(name: str) -> None:
    method = MAKE[name](T)
    losses = batches(T, 4)
    for row in losses[:3]:
        evaluate(method, row)
        if isinstance(method, FAMO):
            method.update(row / 2)
    before = {k: v.clone() for k, v in method.state_dict().items()}
    scalar, weights = evaluate(method, torch.full((T,), FLOOR[name] - 1.0).double())
    assert scalar.isfinite()
    assert weights.tolist() == [0.0] * T
    assert method.status.tolist() == [Status.INVALID_LOSS] * T
    if isinstance(method, FAMO):
        method.update(losses[3])
    after = method.state_dict()
    assert all(torch.equal(after[k], v) for k, v in before.items() if k != "before")


@pytest.mark.parametrize("name", ["stch", "stch-0.3", "igb"])
def test_a_task_that_missed_the_warm_up_takes_its_first_loss(name: str) -> None:
    method, late = MAKE[name](2), MAKE[name](2)
    for row in batches(2, 4):
        evaluate(method, torch.stack([row[0], torch.tensor(3.0).double()]))
        evaluate(late, torch.stack([row[0], torch.tensor(0.0).double()]))
    evaluate(late, torch.tensor([1.0, 3.0]).double())
    now = torch.tensor([0.5, 2.0]).double()
    for got, want in zip(evaluate(late, now), evaluate(method, now), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=0)


def test_a_mean_of_the_warm_up_leaves_steps_without_a_loss_out() -> None:
    method = mtlkernels.IGB(warmup=4, average=4)
    for row in ([1.0, 2.0], [1.0, 0.0], [1.0, 4.0], [1.0, -1.0]):
        evaluate(method, torch.tensor(row).double())
    now = torch.tensor([1.0, 3.0]).double()
    _, weights = evaluate(method, now)
    expected = 2 * torch.ones(2).double().softmax(0) / now  # both at the mean of their own
    torch.testing.assert_close(weights, expected)


def test_dwa_goes_on_without_the_task_that_has_no_ratio() -> None:
    rows = torch.tensor([[0.0, 1.0, 4.0], [1.0, 2.0, 3.0], [1.0, 1.0, 1.0]]).double()
    method, twin = DWA(window=1), DWA(window=1)
    for row in rows:
        (_, weights), (_, expected) = evaluate(method, row), evaluate(twin, row[1:])
    torch.testing.assert_close(weights[1:], expected, rtol=1e-12, atol=0)
    assert weights[0] == 0
    assert method.status.tolist() == [Status.INVALID_LOSS, 0, 0]


@pytest.mark.parametrize("make", [UW, lambda T: RLW()])
def test_rules_without_a_logarithm_take_any_finite_loss(make) -> None:
    method = make(T)
    assert (evaluate(method, torch.tensor([0.0, -1.0, 2.0]))[1] > 0).all()
    assert method.status.tolist() == [0] * T


# ----------------------------------------------------------------- Gram and row methods


@pytest.mark.parametrize(
    ("wrap", "at", "bad"),
    [*zip(WRAP.values(), (0, 1, 2, 1), (0.0, 0.0, -1.0, -1.0), strict=True)],
)
@pytest.mark.parametrize("name", [n for n in GRAM_METHODS if n not in TWO_TASKS])
def test_to_a_gram_method_the_gradient_is_zero(name: str, wrap, at: int, bad: float) -> None:
    method, twin = wrap(GRAM_METHODS[name](T)), wrap(GRAM_METHODS[name](T))
    losses = torch.tensor([1.5, 2.0, 3.0], dtype=torch.float64)
    for step in range(2):
        G = random_rows(T, 9, seed=step)
        zeroed = G.clone()
        zeroed[at] = 0
        expected = twin(zeroed @ zeroed.T, losses)
        expected[at] = 0
        invalid = losses.clone()
        invalid[at] = bad
        weights = method(G @ G.T, invalid)
        if not {"GradNorm", "CRMOGM"} & {name}:  # whose state of the task stays
            torch.testing.assert_close(weights, expected, rtol=1e-9, atol=1e-12)
        assert weights.isfinite().all()
        assert weights[at] == 0
        flags = method.status.tolist()
        assert flags[at] == Status.INVALID_LOSS
        assert not any(f & Status.INVALID_LOSS for t, f in enumerate(flags) if t != at)


@pytest.mark.parametrize("make", [UPGrad, CAGrad, NTKMTL, FairGrad])
def test_the_others_are_combined_as_if_it_were_absent(make) -> None:
    G, losses = random_rows(T, 9, seed=3), torch.tensor([0.5, 0.0, 3.0]).double()
    weights = LogLosses(make())(G @ G.T, losses)
    others = [0, 2]
    alone = LogLosses(make())(G[others] @ G[others].T, losses[others])
    torch.testing.assert_close(weights[others], alone, rtol=1e-9, atol=0)


def test_an_average_of_weights_leaves_out_the_task() -> None:
    method = CRMOGM(LogLosses(CAGrad()))
    G = random_rows(T, 9, seed=3)
    losses = torch.tensor([0.5, 1.0, 3.0]).double()
    method(G @ G.T, losses)
    before = method.average.clone()
    losses[1] = 0
    weights = method(2 * G @ G.T, losses)
    assert weights[1] == 0
    assert method.average[1] == before[1]
    assert not torch.equal(method.average[0], before[0])


def test_gradnorm_moves_the_others() -> None:
    method, losses = GradNorm(), torch.tensor([1.0, 2.0, 3.0]).double()
    for step in range(4):
        G = random_rows(T, 9, seed=step) * torch.tensor([[1.0], [3.0], [9.0]]).double()
        invalid = losses * 0.9**step
        before = method.weights.clone()
        if step == 2:
            invalid[1] = 0
        assert method(G @ G.T, invalid).isfinite().all()
        if step == 2:
            assert method.weights[1] == before[1]
            assert method.weights[0] > before[0]
            assert method.weights[2] < before[2]
        torch.testing.assert_close(method.weights.sum(), torch.tensor(3.0).double())
    assert method.start.tolist() == losses.tolist()


@at_each
@pytest.mark.parametrize("bad", [0.0, -1.0])
@pytest.mark.parametrize(
    "make",
    [
        lambda: DBMTL(0.9, log_losses=True),
        lambda: MoCo(rows="normalized"),
        lambda: MoCo(project="softmax", rows="normalized"),
    ],
)
def test_averages_of_the_task_stay_and_the_others_move_on(make, bad: float, at: int) -> None:
    method, twin = make(), make()
    others = [t for t in range(T) if t != at]
    for step in range(4):
        rows = batch(T, step)
        losses = torch.linspace(0.5, 3 + step, T, dtype=torch.float64)
        invalid = losses.clone()
        invalid[at] = bad
        direction, report = mtlkernels.aggregate(rows, method, invalid)
        want, told = mtlkernels.aggregate([rows[t] for t in others], twin, losses[others])
        torch.testing.assert_close(flat(direction), flat(want), rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(report.weights[others], told.weights, rtol=1e-9, atol=1e-12)
        assert report.weights[at] == 0
        assert report.status[at] == Status.INVALID_LOSS
        assert not method.rows_0[at].any()
    direction, _ = mtlkernels.aggregate(rows, method, losses)
    assert flat(direction).isfinite().all()
    assert method.rows_0[at].any()
