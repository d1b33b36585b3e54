"""Row methods: their rules step by step, and their state."""

from __future__ import annotations

import copy
import io
import math
from typing import Any

import pytest
import torch
from row_cases import (
    batch,
    close,
    flat,
    keeping_rows,
    losses_of,
    matrix,
    step_of,
    with_state,
)

import mtlkernels
from mtlkernels import (
    DBMTL,
    NTKMTL,
    SLW,
    AvgNorm,
    CAGrad,
    ExcessMTL,
    GradDrop,
    LogLosses,
    MoCo,
    Status,
    Sum,
    Tracked,
    TrimmedMean,
    UPGrad,
    ops,
)

pytestmark = pytest.mark.usefixtures("one_thread")


# ---------------------------------------------------------------------------- rules by hand


@pytest.mark.parametrize("inner", [Sum, CAGrad, UPGrad, NTKMTL, SLW], ids=lambda c: c.__name__)
@pytest.mark.parametrize("sigma", [0.0, 0.5])
def test_tracked_is_the_method_on_the_averages(inner, sigma: float) -> None:
    method, m = Tracked(inner(), 0.8, sigma=sigma), torch.zeros_like(matrix(batch(3, 0)))
    for step in range(4):
        G = matrix(batch(3, step))
        m = G + 0.8 / (step + 1) ** sigma * (m - G)
        direction, report = step_of(method, 3, step)
        weights = inner()(m @ m.T)
        close(report.gram, m @ m.T)
        close(report.weights, weights)
        close(direction, weights @ m)
        close(report.direction_norm(), direction.norm())
        close(report.norms(), m.norm(dim=1))
    assert method.step == 4


def test_dbmtl_is_the_papers_rule() -> None:
    method, m = DBMTL(), torch.zeros_like(matrix(batch(3, 0)))
    for step in range(4):
        G = matrix(batch(3, step)) / losses_of(3, step)[:, None]
        m = 0.9 * m + 0.1 * G
        norms = m.norm(dim=1)
        close(step_of(method, 3, step)[0], norms.max() * (m / norms[:, None]).sum(dim=0))


@pytest.mark.parametrize("options", [{}, {"beta": 0.5, "sigma": 0.5}, {"log_losses": False}])
def test_dbmtl_is_one_class_whatever_its_settings(options: dict[str, Any]) -> None:
    method = mtlkernels.get_method("dbmtl", **options)
    assert type(method) is DBMTL
    assert isinstance(copy.deepcopy(method), DBMTL)
    settings = {"beta": 0.9, "log_losses": True, **options}
    twin = Tracked(AvgNorm("max"), **settings)
    for step in range(3):
        close(step_of(method, 3, step)[0], step_of(twin, 3, step)[0])
    twin.load_state_dict(method.state_dict())


def test_dbmtl_without_a_past_is_its_gram_rule() -> None:
    """With beta = 0 the direction is that of the stateless method, with and without logarithm."""
    for log_losses, plain in ((True, LogLosses(AvgNorm("max"))), (False, AvgNorm("max"))):
        direction, _ = step_of(DBMTL(0.0, log_losses=log_losses), 3, 1)
        close(direction, flat(mtlkernels.aggregate(batch(3, 1), plain, losses_of(3, 1))[0]))


def test_no_past_is_the_method_itself() -> None:
    direction, report = step_of(Tracked(CAGrad(), 0.0), 3, 1)
    want, other = mtlkernels.aggregate(batch(3, 1), CAGrad())
    close(direction, flat(want))
    close(report.weights, other.weights)


@pytest.mark.parametrize("project", ["simplex", "softmax"])
@pytest.mark.parametrize("rows", ["gradients", "normalized"])
def test_moco_by_hand(project: str, rows: str) -> None:
    method = MoCo(0.6, 0.5, 0.01, 0.25, 0.3, project=project, rows=rows)
    y, lam = torch.zeros_like(matrix(batch(3, 0))), torch.full((3,), 1 / 3, dtype=torch.float64)
    for step in range(5):
        h, k = matrix(batch(3, step)), step + 1
        if rows == "normalized":
            h = h / h.norm(dim=1, keepdim=True) * losses_of(3, step)[:, None]
        y = y - 0.6 / k**0.5 * (y - h)
        lam = lam - 0.01 / k**0.25 * (y @ y.T + 0.3 * torch.eye(3).double()) @ lam
        lam = lam.softmax(dim=0) if project == "softmax" else ops.onto_simplex(lam)
        direction, report = step_of(method, 3, step)
        close(report.weights, lam)
        close(direction, lam @ y)


@pytest.mark.parametrize("T", [1, 2, 5, 40])
def test_onto_simplex_is_the_nearest_point(T: int) -> None:
    """By its conditions: w = max(x - a, 0) for one a, and w sums to 1."""
    for seed in range(20):
        x = torch.randn(T, generator=torch.Generator().manual_seed(seed)).double() * (1 + seed)
        w = ops.onto_simplex(x)
        assert abs(w.sum() - 1) < 1e-12
        shift = (x - w)[w > 0]
        close(shift, shift[:1].expand_as(shift))
        assert (x[w == 0] <= shift[0] + 1e-12).all()


def test_moco_of_a_still_problem_goes_to_the_min_norm_point() -> None:
    method, G = MoCo(gamma=0.02, beta_sigma=0.0, gamma_sigma=0.0), batch(3, 0)
    for _ in range(2000):
        _, report = mtlkernels.aggregate(G, method)
    close(report.weights, mtlkernels.MGDA()(matrix(G) @ matrix(G).T))


@pytest.mark.parametrize("warmup", [1, 3])
def test_excess_by_hand(warmup: int) -> None:
    method, S = ExcessMTL(0.3, warmup=warmup), torch.zeros_like(matrix(batch(3, 0)))
    seen, w = [], torch.ones(3, dtype=torch.float64)
    for step in range(6):
        G = matrix(batch(3, step))
        S = S + G**2
        seen.append((G**2 / (S + 1e-7).sqrt()).sum(dim=1))
        if step >= warmup:
            w = w * (0.3 * seen[-1] / torch.stack(seen[:warmup]).mean(dim=0)).exp()
            w = 3 * w / w.sum()
        direction, report = step_of(method, 3, step)
        close(report.weights, w)
        close(direction, w @ G)
        assert report.gram is None


def test_excess_of_a_task_that_starts_at_zero() -> None:
    method = ExcessMTL(0.3)
    for step in range(4):
        rows = batch(2, step)
        if step < 2:
            rows[1][0].zero_()
        _, report = mtlkernels.aggregate(rows, method)
        assert report.weights.isfinite().all()
        assert report.weights[1] == 1 if step == 0 else report.weights[1] < report.weights[0]
    assert (method.first > 0).all()


# ------------------------------------------------------------------------------------ GradDrop


def test_graddrop_draws_anew_and_by_its_seed() -> None:
    one, two, other = GradDrop(seed=1), GradDrop(seed=1), GradDrop(seed=2)
    drawn = []
    for _ in range(3):
        rows = batch(3, 0)
        drawn.append(flat(mtlkernels.aggregate(rows, one)[0]))
        assert torch.equal(drawn[-1], flat(mtlkernels.aggregate(rows, two)[0]))
        assert not torch.equal(drawn[-1], flat(mtlkernels.aggregate(rows, other)[0]))
    assert not torch.equal(drawn[0], drawn[1])
    assert one.step == 3


def test_graddrop_draws_of_each_dtype_are_its_own() -> None:
    g = torch.randn(2000, generator=torch.Generator().manual_seed(0))
    rows = [[s * g, s * g.double()] for s in (1, -1)]
    first, second = mtlkernels.aggregate(rows, GradDrop())[0]
    agree = ((first > 0) == (second > 0)).double().mean()
    assert 0.4 < agree < 0.6


def test_graddrop_leak_by_task() -> None:
    rows = batch(3, 0)
    direction = flat(mtlkernels.aggregate(rows, GradDrop([0.0, 1.0, 0.0]))[0])
    rest = direction - matrix(rows)[1]
    choices = [0 * rest, *matrix(rows)[[0, 2]], matrix(rows)[[0, 2]].sum(dim=0)]
    assert (torch.stack([(rest - c).abs() < 1e-12 for c in choices]).any(dim=0)).all()
    for leak in (-0.1, 1.5, math.nan, []):
        with pytest.raises(ValueError, match="leak="):
            GradDrop(leak)
    with pytest.raises(ValueError, match="leak has 2 numbers for 3 tasks"):
        mtlkernels.aggregate(rows, GradDrop([0.0, 1.0]))


@pytest.mark.parametrize("make", [GradDrop, TrimmedMean])
def test_a_report_without_weights_says_so(make) -> None:
    _, report = mtlkernels.aggregate(batch(3, 0), make(), losses_of(3))
    assert report.gram is None
    assert report.weights is None
    assert report.status.tolist() == [0, 0, 0]
    with pytest.raises(ValueError, match="this step has no Gram matrix"):
        report.direction_norm()
    losses = losses_of(3)
    losses[1] = math.nan
    assert mtlkernels.aggregate(batch(3, 0), make(), losses)[1].status.tolist() == [0, 1, 0]
    assert mtlkernels.aggregate(batch(3, 0), make())[1].status.tolist() == [0, 0, 0]


def test_trimmed_mean_arguments() -> None:
    with pytest.raises(ValueError, match="trim=-1: it must not be negative"):
        TrimmedMean(-1)
    with pytest.raises(ValueError, match="trim=2 leaves none of 4 tasks"):
        mtlkernels.aggregate(batch(4, 0), TrimmedMean(2))


# ------------------------------------------------------------------------------------ state


@with_state
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_state_goes_through_a_file_into_a_fresh_method(make, dtype: torch.dtype) -> None:
    method = make()
    for step in range(3):
        step_of(method, 3, step, dtype)
    file = io.BytesIO()
    torch.save(method.state_dict(), file)
    file.seek(0)
    fresh, copied = make(), copy.deepcopy(method)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    for step in range(3, 6):
        want = step_of(method, 3, step, dtype)
        for other in (fresh, copied):
            got = step_of(other, 3, step, dtype)
            assert torch.equal(got[0], want[0])
            if want[1].weights is not None:
                assert torch.equal(got[1].weights, want[1].weights)


@keeping_rows
def test_an_earlier_state_takes_a_used_method_back(make) -> None:
    method = make()
    start = copy.deepcopy(method.state_dict())
    first = [step_of(method, 3, step)[0] for step in range(2)]
    method.load_state_dict(start)
    assert method.state_dict().keys() == start.keys()
    assert all(torch.equal(step_of(method, 3, k)[0], d) for k, d in enumerate(first))


@keeping_rows
def test_another_set_of_tasks_or_parameters_is_refused(make) -> None:
    method = make()
    step_of(method, 3, 0)
    for T, dtype, n in ((2, torch.float64, 37), (3, torch.float64, 99), (3, torch.float32, 37)):
        with pytest.raises(ValueError, match=r"the state of .* use a new method"):
            mtlkernels.aggregate(batch(T, 0, dtype, n), method, losses_of(T))
    both = [[a, *([] if b is None else [b.float()])] for a, b in batch(3, 0)]
    both[1].append(None)
    with pytest.raises(ValueError, match=r"is for 3 x 64 numbers in float64, not 3 x 48 and 3 x"):
        mtlkernels.aggregate(both, method, losses_of(3))
    step_of(method, 3, 1)


@with_state
def test_losses_of_other_tasks_are_refused(make) -> None:
    method = make()
    with pytest.raises(ValueError, match="4 losses were given for 3 tasks"):
        mtlkernels.aggregate(batch(3, 0), method, losses_of(4))
    step_of(method, 3, 0)


@keeping_rows
def test_mixed_dtypes(make) -> None:
    """One parameter in bfloat16 beside one in float64: the same to their accuracy."""
    mixed, plain = make(), make()
    for step in range(3):
        rows = [
            [a.bfloat16(), None if b is None else b.double()]
            for a, b in batch(3, step, torch.float32)
        ]
        got, report = mtlkernels.aggregate(rows, mixed, losses_of(3, step))
        wide = [[None if g is None else g.double() for g in row] for row in rows]
        want, other = mtlkernels.aggregate(wide, plain, losses_of(3, step))
        assert [d.dtype for d in got] == [torch.bfloat16, torch.float64]
        torch.testing.assert_close(report.weights, other.weights, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(got[0].double(), want[0], rtol=1e-2, atol=1e-4)
        torch.testing.assert_close(got[1], want[1], rtol=1e-4, atol=1e-5)
    assert [b.dtype for n, b in mixed.named_buffers() if n.startswith("rows_")] == [
        torch.float32,
        torch.float64,
    ]
    fresh = make()
    fresh.load_state_dict(mixed.state_dict())
    assert mixed.to("cpu") is mixed
    same = [mtlkernels.aggregate(rows, m, losses_of(3))[0] for m in (mixed, fresh)]
    assert all(torch.equal(a, b) for a, b in zip(*same, strict=True))


@keeping_rows
def test_a_bad_step_shows_and_leaves_no_trace_that_lasts(make) -> None:
    method = make()
    step_of(method, 3, 0)
    rows = batch(3, 1)
    rows[2][0][5] = math.inf
    direction, report = mtlkernels.aggregate(rows, method, losses_of(3))
    assert all(d.isnan().all() for d in direction)
    assert report.status[2] & Status.NON_FINITE
    assert not report.status[0] & Status.NON_FINITE
    assert report.weights.isnan().all()
    assert method.step == 1
    assert all(b.isfinite().all() for b in method.state_dict().values())
    direction, report = step_of(method, 3, 2)
    assert direction.isfinite().all()
    assert method.step == 2


@keeping_rows
def test_zero_gradients(make) -> None:
    method = make()
    for step in range(2):
        rows = [[None if g is None else 0 * g for g in row] for row in batch(3, step)]
        direction, report = mtlkernels.aggregate(rows, method, losses_of(3))
        assert (flat(direction) == 0).all()
        assert report.weights.isfinite().all()
    rows = batch(3, 3)
    rows[1][0].zero_()
    direction, report = mtlkernels.aggregate(rows, method, losses_of(3))
    assert flat(direction).isfinite().all()
    assert report.weights.isfinite().all()


@pytest.mark.parametrize(
    "make", [lambda: DBMTL(0.9, log_losses=True), lambda: MoCo(rows="normalized")]
)
@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_a_loss_without_a_logarithm(make, bad: float) -> None:
    method = make()
    step_of(method, 3, 0)
    before = method.rows_0.clone()
    losses = losses_of(3)
    losses[1] = bad
    direction, report = mtlkernels.aggregate(batch(3, 1), method, losses)
    assert (report.status & Status.INVALID_LOSS).tolist() == [0, Status.INVALID_LOSS, 0]
    finite = bad <= 0
    assert all(d.isfinite().all() if finite else d.isnan().all() for d in direction)
    assert torch.equal(method.rows_0[1], before[1])
    with pytest.raises(ValueError, match="needs the tasks' losses"):
        mtlkernels.aggregate(batch(3, 1), make())
