"""State belongs to tasks' names: another order, a resume, new tasks, numbers by name, reset."""

from __future__ import annotations

import copy
import io
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from contract import EVERY_METHOD, Net, assert_same, assert_same_state, batches, pair
from torch import Tensor

import mtlkernels
from mtlkernels import (
    CRMOGM,
    DWA,
    FAMO,
    PIVRG,
    SLAW,
    STCH,
    UW,
    AlignedMTL,
    CAGrad,
    ExcessMTL,
    FixedWeights,
    GradDrop,
    GradNorm,
    GradVac,
    MTLOptimizer,
    Preferred,
    Report,
    UPGrad,
)

pytestmark = pytest.mark.usefixtures("one_thread")

every_method = pytest.mark.parametrize("name", EVERY_METHOD)
STATEFUL = [name for name, (_, make) in EVERY_METHOD.items() if make().state_dict()]
stateful = pytest.mark.parametrize("name", STATEFUL)
BATCHES = batches(6)


def named(model: Net, x: Tensor, order: Sequence[int] | None = None) -> dict[str, Tensor]:
    """The model's losses by name, in an order."""
    losses = model(x)
    return {f"task {t}": losses[t] for t in order or range(len(losses))}


def advance(model: Net, optimizer: MTLOptimizer, x: Tensor, order: Sequence[int]) -> Report:
    optimizer.zero_grad()
    report = optimizer.backward(named(model, x, order))
    optimizer.step()
    if isinstance(optimizer.method, FAMO):
        optimizer.method.update(torch.stack([model(x)[t].detach() for t in order]))
    return report


def same_reports(a: Report, b: Report, order: Sequence[int]) -> None:
    """Whether b is a with the tasks in another order."""
    index = torch.tensor(order)
    assert b.tasks == tuple(a.tasks[t] for t in order)
    for x, y in ((a.losses, b.losses), (a.status, b.status), (a.weights, b.weights)):
        assert (x is None) == (y is None)
        if x is not None:
            torch.testing.assert_close(y, x[..., index], rtol=0, atol=0, equal_nan=True)
    if a.gram is not None:
        assert torch.equal(b.gram, a.gram[..., index, :][..., index])


def on_disk(state: object) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file)


@stateful
def test_another_order_after_a_resume_changes_no_bit(name: str) -> None:
    tasks, make = EVERY_METHOD[name]
    order = [2, 0, 1] if tasks == 3 else [1, 0]
    model, optimizer = pair("adamw", make(), tasks)
    for x in BATCHES[:3]:
        advance(model, optimizer, x, range(tasks))
    saved = on_disk([model.state_dict(), optimizer.state_dict()])
    other, fresh = pair("adamw", make(), tasks, seed=5)
    other.load_state_dict(saved[0])
    fresh.load_state_dict(saved[1])
    for x in BATCHES[3:]:
        first = advance(model, optimizer, x, range(tasks))
        second = advance(other, fresh, x, order)
        same_reports(first, second, order)
    assert_same(model, other)
    assert_same_state(optimizer.method, fresh.method)


@every_method
def test_another_order_in_every_step_changes_no_bit(name: str) -> None:
    tasks, make = EVERY_METHOD[name]
    model, optimizer = pair("sgd", make(), tasks)
    other, mixed = pair("sgd", make(), tasks)
    for step, x in enumerate(BATCHES):
        order = [(t + step) % tasks for t in range(tasks)]
        same_reports(
            advance(model, optimizer, x, range(tasks)), advance(other, mixed, x, order), order
        )
    assert_same(model, other)


def test_fixed_weights_stay_with_the_first_step_s_names() -> None:
    p = torch.nn.Parameter(torch.ones(2))
    optimizer = MTLOptimizer(torch.optim.SGD([p], lr=0.1), FixedWeights([1, 10]))

    def grads(*names: str) -> list[float]:
        optimizer.zero_grad()
        losses = {"seg": p[0] * 1.0, "depth": p[1] * 1.0}
        report = optimizer.backward({name: losses[name] for name in names})
        assert report.weights.tolist() == [{"seg": 1, "depth": 10}[name] for name in names]
        return p.grad.tolist()

    assert grads("seg", "depth") == grads("depth", "seg") == [1, 10]
    q = torch.nn.Parameter(torch.ones(2))
    fresh = MTLOptimizer(torch.optim.SGD([q], lr=0.1), FixedWeights([1, 10]))
    fresh.load_state_dict(on_disk(optimizer.state_dict()))
    fresh.backward({"depth": q[1] * 1.0, "seg": q[0] * 1.0})
    assert q.grad.tolist() == [1, 10]


def test_losses_without_names_have_positions() -> None:
    K = torch.eye(2, dtype=torch.float64)
    p = torch.nn.Parameter(torch.ones(2))
    method = FixedWeights([1, 10])
    for _ in range(2):
        report = mtlkernels.backward([p[0] * 1.0, p[1] * 1.0], [p], method)
        assert report.weights.tolist() == [1, 10]
    mtlkernels.backward({"b": p[1] * 1.0, "a": p[0] * 1.0}, [p], method)
    assert mtlkernels.backward([p[0] * 1.0, p[1] * 1.0], [p], method).weights.tolist() == [1, 10]
    assert method(K).tolist() == [1, 10]


LONG = [torch.randn(3, 40, generator=torch.Generator().manual_seed(s)).double() for s in range(8)]


def run(method: Any, steps: Sequence[tuple[str, ...]]) -> list[Report]:
    """Steps on given gradients, of tasks a to c."""
    reports = []
    for G, names in zip(LONG, steps, strict=False):
        rows = [[G["abc".index(name)]] for name in names]
        losses = torch.tensor([1.0 + "abc".index(name) for name in names]).double()
        reports.append(mtlkernels.aggregate(rows, method, losses, tasks=names)[1])
    return reports


def test_a_new_name_starts_anew_and_takes_nobody_s_state() -> None:
    method, other = GradNorm(), GradVac(beta=0.5, seed=3)
    run(method, ["ab"] * 3)
    run(method, ["bc"])
    assert method.task_names == ("a", "b", "c")
    assert method.start.tolist() == [1.0, 2.0, 3.0]
    run(other, ["ab"] * 3)
    targets = other.phi.clone()
    assert targets.abs().sum() > 0
    run(other, ["bc"])
    assert other.phi[:2, :2].equal(torch.where(torch.eye(2) > 0, other.phi[:2, :2], targets))
    assert other.phi[0, 2] == other.phi[2, 0] == 0
    assert other.phi[1, 2] != 0


def test_old_state_without_names_is_of_positions() -> None:
    method, old = GradNorm(), GradNorm()
    run(method, ["abc"] * 4)
    state = {k: v for k, v in method.state_dict().items() if k != "task_names"}
    old.load_state_dict(state)
    assert old.task_names == ()
    same_reports(run(method, ["abc"])[0], run(old, ["abc"])[0], [0, 1, 2])
    same_reports(run(method, ["abc"])[0], run(old, ["cab"])[0], [2, 0, 1])


@pytest.mark.parametrize("make", [lambda: DWA(window=1), SLAW, ExcessMTL, lambda: STCH()])
def test_old_state_with_one_count_for_all_loads(make) -> None:
    method, old = make(), make()
    G = [torch.ones(4) * t for t in (1.0, 2.0)]
    p = torch.nn.Parameter(torch.ones(4))

    def step(m: Any, s: float) -> Tensor:
        return mtlkernels.backward([(p * g).sum() * s for g in G], [p], m).weights

    for s in (1.0, 0.5, 0.7):
        step(method, s)
    state = dict(method.state_dict())
    if "steps" in state:
        state["steps"] = torch.tensor(int(state["steps"].max()))
    state.pop("missed", None)
    del state["task_names"]
    old.load_state_dict(state)
    assert torch.equal(step(method, 0.9), step(old, 0.9))


def test_a_state_of_other_tasks_is_refused_before_anything_changes() -> None:
    model, optimizer = pair("adamw", UW(3))
    optimizer.backward(named(model, BATCHES[0]))
    optimizer.step()
    saved = optimizer.state_dict()
    saved["param_groups"][0]["lr"] = 0.5
    other, fresh = pair("adamw", UW(3))
    fresh.backward({f"other {t}": loss for t, loss in enumerate(other(BATCHES[0]))})
    before = copy.deepcopy(fresh.method.state_dict())
    with pytest.raises(ValueError, match=r"saved for the tasks task 0.*other 0.*Nothing was"):
        fresh.load_state_dict(saved)
    with pytest.raises(ValueError, match="Nothing was loaded"):
        fresh.method.load_state_dict(optimizer.method.state_dict())
    with pytest.raises(RuntimeError, match="Nothing was loaded"):
        torch.nn.ModuleList([fresh.method]).load_state_dict(
            {f"0.{k}": v for k, v in optimizer.method.state_dict().items()}
        )
    assert fresh.param_groups[0]["lr"] == 1e-2
    for key, value in fresh.method.state_dict().items():
        assert torch.equal(value, before[key])


# ------------------------------------------------------------------------------- numbers by name

BY_NAME = {
    "FixedWeights": (lambda v: FixedWeights(v), [1.0, 10.0, 2.0]),
    "Preferred": (lambda v: Preferred(CAGrad(), v), [1.0, 3.0, 2.0]),
    "UPGrad": (lambda v: UPGrad(v), [1.0, 3.0, 0.0]),
    "AlignedMTL": (lambda v: AlignedMTL(preference=v), [1.0, 3.0, 0.0]),
    "GradDrop": (lambda v: GradDrop(v), [0.0, 1.0, 0.5]),
    "CRMOGM(FixedWeights)": (lambda v: CRMOGM(FixedWeights(v)), [1.0, 10.0, 2.0]),
}


@pytest.mark.parametrize("case", BY_NAME)
def test_numbers_may_be_given_by_name(case: str) -> None:
    make, numbers = BY_NAME[case]
    by_place = make(numbers)
    by_name = make({"c": numbers[2], "a": numbers[0], "b": numbers[1]})
    first = run(by_place, ["abc"] * 2)[-1]
    for order in ("abc", "bca"):
        found = run(copy.deepcopy(by_name), [order] * 2)[-1]
        if first.weights is not None:
            torch.testing.assert_close(
                found.weights, first.weights[["abc".index(n) for n in order]], rtol=1e-12, atol=0
            )
    with pytest.raises(ValueError, match="name the same tasks"):
        run(copy.deepcopy(by_name), ["ab"])  # a missing name
    with pytest.raises(ValueError, match=r"name the same tasks|got a loss of"):
        run(make({"a": 1.0, "b": 1.0}), ["abc"])
    with pytest.raises(ValueError, match="give a mapping"):
        mtlkernels.aggregate([[g] for g in LONG[0]], by_name)


def test_loss_methods_take_numbers_by_name() -> None:
    p = torch.nn.Parameter(torch.ones(2))

    def weights(method: Any, *names: str) -> list[float]:
        losses = {"a": p[0] * 1.0, "b": p[1] * 2.0}
        report = mtlkernels.backward({n: losses[n] for n in names}, [p], method)
        return dict(zip(report.tasks, report.weights.tolist(), strict=True))

    for make in (
        lambda v: FAMO(min_losses=v),
        lambda v: STCH(nadir=v),
        lambda v: STCH(form="linear", reference=v),
    ):
        wanted = weights(make([0.5, 1.5]), "a", "b")
        for order in ("ab", "ba"):
            assert weights(make({"b": 1.5, "a": 0.5}), *order) == wanted


def test_updates_by_name() -> None:
    method, twin = PIVRG(), PIVRG()
    run(method, ["abc"])
    run(twin, ["abc"])
    method.update([1.0, 5.0, 9.0])
    twin.update({"c": 9.0, "a": 1.0, "b": 5.0})
    assert torch.equal(method.importance, twin.importance)
    with pytest.raises(ValueError, match=r"degradations names a, b, x"):
        twin.update({"a": 1.0, "b": 5.0, "x": 9.0})


def test_famo_update_follows_the_last_step() -> None:
    found = []
    for order in ("ab", "ba"):
        for by_name in (True, False):
            method, p = FAMO(), torch.nn.Parameter(torch.ones(2))
            after = {"a": torch.tensor(0.9), "b": torch.tensor(1.1)}
            for names, scale in (("ab", 1), (order, 2)):
                losses = {"a": p[0] * scale, "b": p[1] * 2 * scale}
                mtlkernels.backward({n: losses[n] for n in names}, [p], method)
            method.update(after if by_name else torch.stack([after[n] for n in order]))
            found.append(method.xi)
    assert all(torch.equal(xi, found[0]) for xi in found)


# ---------------------------------------------------------------------------------------- reset


@stateful
def test_reset_makes_a_method_what_it_was(name: str) -> None:
    tasks, make = EVERY_METHOD[name]
    model, optimizer = pair("sgd", make(), tasks)
    for x in BATCHES[:3]:
        advance(model, optimizer, x, range(tasks))
    optimizer.method.reset()
    assert_same_state(optimizer.method, make())
    assert optimizer.method.task_names == ()
    fresh, anew = pair("sgd", make(), tasks)
    model.load_state_dict(fresh.state_dict())
    again = MTLOptimizer(
        torch.optim.SGD(
            [*model.parameters(), *optimizer.method.parameters()], lr=0.05, momentum=0.9
        ),
        optimizer.method,
        parts=[[model.trunk.weight]] if "PerPart" in name else None,
    )
    for x in BATCHES[:3]:
        same_reports(
            advance(fresh, anew, x, range(tasks)),
            advance(model, again, x, range(tasks)),
            list(range(tasks)),
        )
    assert_same(fresh, model)


@pytest.mark.parametrize("wrong", [{"a": 1, "b": None}, {"a": 1, "b": "x"}, {1, 2}, [1, 2j]])
def test_what_is_no_number_of_a_task_is_refused_with_advice(wrong: Any) -> None:
    for make in (mtlkernels.FixedWeights, lambda p: mtlkernels.Preferred(CAGrad(), p)):
        with pytest.raises(TypeError, match=r"give one real number per task, .* by name"):
            make(wrong)


def test_names_given_to_aggregate_are_advised() -> None:
    rows = [[torch.ones(3)], [torch.ones(3)]]
    method = mtlkernels.FixedWeights({"a": 1, "b": 10})
    with pytest.raises(ValueError, match="names as tasks="):
        mtlkernels.aggregate(rows, method)
    report = mtlkernels.aggregate(rows, method, tasks=["b", "a"])[1]
    assert report.weights.tolist() == [10, 1]
