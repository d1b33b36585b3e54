"""None for a loss that has no data in a step, in one process: every method and every option."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from contract import EVERY_METHOD, KINDS, Net, assert_same_state, batches, pair
from gram_methods import GRAM_METHODS, TWO_TASKS
from loss_methods import MAKE as LOSS_METHODS
from row_cases import STATEFUL as ROW_METHODS
from torch import Tensor, nn
from torch_versions import compiles_steps

import mtlkernels
from mtlkernels import (
    DWA,
    FAMO,
    SLAW,
    UW,
    CAGrad,
    ExcessMTL,
    FixedWeights,
    GradNorm,
    Monitor,
    MTLOptimizer,
    NGDiff,
    PCGrad,
    PerPart,
    Splitter,
    Status,
    Sum,
    UPGrad,
)

pytestmark = pytest.mark.usefixtures("one_thread")

BATCHES = batches(6)
MANY = [name for name in EVERY_METHOD if name.split("-")[0] not in TWO_TASKS]
every_method = pytest.mark.parametrize("name", MANY)


def losses_of(model: Net, x: Tensor, present: str) -> dict[str, Tensor | None]:
    return {n: loss if n in present else None for n, loss in zip("abc", model(x), strict=True)}


def grads(model: nn.Module) -> list[Tensor | None]:
    return [p.grad for p in model.parameters()]


def same(a: list[Tensor | None], b: list[Tensor | None]) -> None:
    for x, y in zip(a, b, strict=True):
        assert (x is None) == (y is None)
        if x is not None:
            torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-12)


@every_method
def test_absent_tasks_take_no_part(name: str) -> None:
    """A first step without one task is that of a method that knows the two others."""
    _, make = EVERY_METHOD[name]
    two: dict[str, Any] = {
        **{n: (lambda n=n: GRAM_METHODS[n](2)) for n in GRAM_METHODS},
        "UW": lambda: LOSS_METHODS["uw"](2),
        "IMTLL": lambda: mtlkernels.IMTLL(2),
        "ResNorm": lambda: mtlkernels.ResNorm(2),
        "TrimmedMean": lambda: mtlkernels.TrimmedMean(0),
    }
    for order in ("abc", "cab"):
        model, optimizer = pair("sgd", make())
        twin, other = pair("sgd", two.get(name, make)())
        losses = losses_of(model, BATCHES[0], "ac")
        report = optimizer.backward({n: losses[n] for n in order})
        expected = losses_of(twin, BATCHES[0], "ac")
        wanted = other.backward({n: expected[n] for n in order if n in "ac"})
        same(grads(model), grads(twin))
        assert model.heads[1].weight.grad is None
        assert report.tasks == tuple(order)
        b = order.index("b")
        assert report.status[b] == Status.ABSENT
        keep = [t for t in range(3) if t != b]
        for field in ("losses", "weights", "status"):
            value, two_tasks = getattr(report, field), getattr(wanted, field)
            if value is not None:
                torch.testing.assert_close(value[..., keep], two_tasks, rtol=0, atol=0)
                assert field == "status" or (value[..., b] == 0).all()


@every_method
def test_one_task_left_is_plain_training_and_the_state_stays(name: str) -> None:
    _, make = EVERY_METHOD[name]
    if isinstance(make(), FixedWeights):
        pytest.skip("its weights are a person's own, see below")
    model, optimizer = pair("sgd", make())
    optimizer.backward(losses_of(model, BATCHES[0], "abc"))
    before = copy.deepcopy(optimizer.method)
    for x, left in zip(BATCHES[1:], "acb", strict=False):
        optimizer.zero_grad()
        learnt = list(optimizer.method.parameters())
        report = optimizer.backward(losses_of(model, x, left))
        plain = model.zero_grad, model(x)["abc".index(left)]
        same(
            grads(model),
            list(torch.autograd.grad(plain[1], list(model.parameters()), allow_unused=True)),
        )
        assert report.weights.tolist() == [float(n == left) for n in "abc"]
        assert all(p.grad is None for p in learnt)
        assert_same_state(optimizer.method, before)


@every_method
def test_steps_of_some_tasks_leave_the_others_state(name: str) -> None:
    _, make = EVERY_METHOD[name]
    model, optimizer = pair("sgd", make())
    method = optimizer.method
    for x, present in zip(BATCHES, ("abc", "abc", "ac", "bc", "abc", "ab"), strict=True):
        before = copy.deepcopy(method.state_dict())
        optimizer.zero_grad()
        optimizer.backward(losses_of(model, x, present))
        optimizer.step()
        if isinstance(method, FAMO):
            method.update(losses_of(model, x, present))
        for key, value in method.state_dict().items():
            old = before.get(key)
            sized = old is not None and value.dim() and len(value) == 3 and old.shape == value.shape
            if sized and "names" not in key and "extra" not in key and key not in ("s", "missed"):
                for t, n in enumerate("abc"):
                    if n not in present:
                        assert torch.equal(value[t], old[t]), key
        assert all(p.isfinite().all() for p in model.parameters())
    assert method.task_names == ("a", "b", "c")


@pytest.mark.parametrize("given", ["mapping", "list", "a mapping without the name"])
@pytest.mark.parametrize("name", KINDS)
def test_every_way_to_say_it(name: str, given: str) -> None:
    found = []
    for way in ("mapping", given):
        model, optimizer = pair("sgd", KINDS[name]())
        for x, present in zip(BATCHES, ("abc", "ac", "abc"), strict=False):
            losses: Any = losses_of(model, x, present)
            if way == "list":
                losses = list(losses.values())
            elif way != "mapping":
                losses = {n: loss for n, loss in losses.items() if loss is not None}
            optimizer.zero_grad()
            optimizer.backward(losses)
            optimizer.step()
        found.append(grads(model))
    same(*found)


def test_none_at_all_is_an_error() -> None:
    p = nn.Parameter(torch.ones(2))
    for losses in ([None, None], {"a": None, "b": None}):
        with pytest.raises(ValueError, match=r"all 2 losses are None: give at least one"):
            mtlkernels.backward(losses, [p], PCGrad())
    assert p.grad is None


@pytest.mark.parametrize("loss", [torch.zeros(()), torch.tensor(0.0, dtype=torch.float64)])
def test_a_constant_is_refused_and_none_advised(loss: Tensor) -> None:
    p = nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match=r"'b' has no graph.*no data in this step, give None"):
        mtlkernels.backward({"a": p.sum(), "b": loss}, [p], PCGrad())


def test_fixed_weights_stay_and_ngdiff_refuses() -> None:
    p = nn.Parameter(torch.ones(2))
    weights = FixedWeights({"retain": 1, "forget": -2})
    mtlkernels.backward({"forget": p.sum(), "retain": None}, [p], weights)
    assert p.grad.tolist() == [-2, -2]
    with pytest.raises(ValueError, match="takes two losses, retain and forget, and got 1 task"):
        mtlkernels.backward({"retain": None, "forget": p.sum()}, [p], NGDiff())


# ------------------------------------------------------------------------------------- options


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4)).double()
        self.heads = nn.ModuleList(nn.Linear(4, 1) for _ in range(3)).double()

    def forward(self, x: Tensor, present: str = "abc") -> tuple[Tensor, dict[str, Tensor | None]]:
        z = self.trunk(x).tanh()
        return z, {
            n: (head(z) - t).square().mean() if n in present else None
            for t, (n, head) in enumerate(zip("abc", self.heads, strict=True))
        }


def made(method: Any = None, **options: Any) -> tuple[Model, MTLOptimizer]:
    model = Model()
    if options.get("measure"):
        options["measure"] = list(model.trunk[2].parameters())
    if options.get("parts"):
        options["parts"] = [[p] for p in model.trunk.parameters()]
        method = PerPart(UPGrad())
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    return model, MTLOptimizer(base, method or UPGrad(), **options)


X = torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
OPTIONS: list[dict[str, Any]] = [
    {},
    {"measure": True},
    {"features": True},
    {"apply": "backward"},
    {"collect": "batched"},
    {"parts": True},
    {"weight_heads": True},
    {"every": 2},
    {"rows_dtype": torch.bfloat16},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_with_every_option(options: dict[str, Any]) -> None:
    features = options.get("features", False)
    options = {k: v for k, v in options.items() if k != "features"}
    model, optimizer = made(**options)
    twin, other = made(**options)
    for step, present in enumerate(("ac", "b", "ac", "abc", "ab", "c")):
        x = X + step
        for m, o, absent in ((model, optimizer, True), (twin, other, False)):
            z, losses = m(x, present)
            if not absent:
                losses = {n: loss for n, loss in losses.items() if loss is not None}
            o.zero_grad()
            report = o.backward(losses, **({"features": z} if features else {}))
        same(grads(model), grads(twin))
        for n, head in zip("abc", model.heads, strict=True):
            assert (head.weight.grad is None) == (n not in present)
        if len(present) == 1:
            loss = model(x, present)[1][present]
            wanted = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
            same(grads(model), list(wanted))
        assert report is not None
        optimizer.step()
        other.step()


def test_reused_weights_serve_the_tasks_they_are_of() -> None:
    asked: list[int] = []

    class Counting(UPGrad):
        def forward(self, gram: Tensor, losses: Tensor | None = None) -> Tensor:
            asked.append(len(gram))
            return super().forward(gram, losses)

    model, optimizer = made(Counting(), every=3)
    for present in ("abc", "abc", "ac", "ac", "b", "ac", "ac"):
        optimizer.backward(model(X, present)[1])
    assert asked == [3, 2, 2]


def test_accumulation_adds_what_each_micro_batch_has() -> None:
    for method in (UPGrad(), GradNorm(), mtlkernels.MoCo(), PCGrad()):
        model, optimizer = made(copy.deepcopy(method))
        twin, other = made(copy.deepcopy(method))
        parts = [("ac", X[:2]), ("b", X[2:4]), ("a", X[4:])]
        for present, x in parts:
            assert optimizer.backward(model(x, present)[1], accumulate=True) is None
        report = optimizer.combine()
        sums: dict[str, Tensor] = {}
        for present, x in parts:
            for n, loss in twin(x, present)[1].items():
                if loss is not None:
                    sums[n] = sums[n] + loss if n in sums else loss
        wanted = other.backward({n: sums[n] for n in "abc"})
        same(grads(model), grads(twin))
        assert report.tasks == ("a", "b", "c")
        torch.testing.assert_close(report.weights, wanted.weights)
        optimizer.zero_grad()
        for x in (X[:3], X[3:]):  # one task is absent from all of them
            optimizer.backward(model(x, "ac")[1], accumulate=True)
        assert optimizer.combine().status.tolist() == [0, Status.ABSENT, 0]
        assert model.heads[1].weight.grad is None
        optimizer.zero_grad()
        optimizer.backward(model(X, "b")[1], accumulate=True)
        optimizer.backward({"c": model(X)[1]["c"]}, accumulate=True)  # a name less is None too
        optimizer.combine()
        assert model.heads[0].weight.grad is None
        assert model.heads[2].weight.grad is not None


def test_with_a_scaler() -> None:
    model, optimizer = made(GradNorm())
    twin, other = made(GradNorm())
    for present in ("ac", "b", "abc"):
        optimizer.zero_grad()
        other.zero_grad()
        optimizer.backward(model(X, present)[1], scaler=torch.tensor(8.0))
        other.backward(twin(X, present)[1])
        same([None if g is None else g / 8 for g in grads(model)], grads(twin))


@compiles_steps
@pytest.mark.parametrize("make", [mtlkernels.GradVac, SLAW, DWA, mtlkernels.GO4Align])
def test_compiled(make) -> None:
    torch._dynamo.reset()
    model, optimizer = made(make())
    twin, other = made(make())

    @mtlkernels.compile_step
    def step(x: Tensor, present: str) -> mtlkernels.Report:
        return optimizer.backward(model(x, present)[1])

    step = mtlkernels.compile_step(step.__wrapped__, backend="eager")
    for present in ("abc", "ac", "b", "abc"):
        report, wanted = step(X, present), other.backward(twin(X, present)[1])
        torch.testing.assert_close(report.weights, wanted.weights)
        assert torch.equal(report.status, wanted.status)
        same(grads(model), grads(twin))
    assert_same_state(optimizer.method, other.method)


def test_a_splitter_weighs_the_copies_that_are_used() -> None:
    found = []
    for split in (True, False):
        model = Model()
        z = model.trunk(X).tanh()
        splitter = Splitter(CAGrad(), 3)
        copies = splitter(z) if split else [z] * 3
        losses = [(h(c) - 1).square().mean() for h, c in zip(model.heads, copies, strict=True)]
        if split:
            (losses[0] + losses[2]).backward()
            assert splitter.report.weights[1] == 0
        else:
            mtlkernels.backward(
                [losses[0], losses[2]], list(model.parameters()), CAGrad(), features=z
            )
        found.append(grads(model))
    same(*found)
    model, splitter = Model(), Splitter(CAGrad(), 3)
    copies = splitter(model.trunk(X).tanh())
    model.heads[1](copies[1]).sum().backward()
    wanted = torch.autograd.grad(
        model.heads[1](model.trunk(X).tanh()).sum(), list(model.trunk.parameters())
    )
    same([p.grad for p in model.trunk.parameters()], list(wanted))


def test_reports_and_a_monitor_leave_absent_tasks_out() -> None:
    model, optimizer = made(Sum())
    monitor = Monitor(every=10)
    full, seen = [], []
    for step, present in enumerate(("abc", "ac", "b", "abc")):
        losses = model(X + step, present)[1]
        if step == 1:
            losses = {n: losses[n] for n in "ca"}
        report = optimizer.backward(losses)
        monitor(report)
        if step == 1:
            two = mtlkernels.backward(
                list(model(X + step, "ac")[1].values())[::2], list(model.parameters()), Sum()
            )
            assert report.tasks == ("c", "a")
            assert torch.equal(report.conflict_rate(), two.conflict_rate())
        if step == 2:
            assert report.norm_ratio() == 1
            assert report.conflict_rate().isnan()
            assert report.warnings() == ["a: ABSENT", "c: ABSENT"]
        full.append(float(losses["a"].detach()) if losses.get("a") is not None else None)
        seen.append(report)
    record = monitor.flush()
    assert record["losses"][0] == pytest.approx(sum(v for v in full if v is not None) / 3)
    assert record["known"][0][1] == 0.5
    assert record["known"][0][2] == 0.75
    assert record["status"][1] == ["ABSENT"]
    assert record["weights"] == [1, 1, 1]


# ---------------------------------------------------------------------- counts of each task's own


@pytest.mark.parametrize("make", [lambda: DWA(window=2), SLAW])
def test_a_task_s_history_is_of_its_own_steps(make: Any) -> None:
    """Two pairs of tasks that are never there together keep what each keeps without the other."""
    p = nn.Parameter(torch.ones(2))

    def step(method: Any, value: float, *names: str) -> None:
        losses = {n: (p * p).sum() * value * k for n, k in zip(names, (1.0, 0.3), strict=True)}
        mtlkernels.backward(losses, [p], method)

    both, alone = make(), make()
    for value in (1.0, 0.7, 0.5, 0.4, 0.35):
        step(both, value, "a", "b")
        step(both, 3 * value, "c", "d")
        step(alone, value, "a", "b")
    for key, value in alone.state_dict().items():
        if "names" not in key:
            assert torch.equal(both.state_dict()[key][:2], value), key


def test_excess_counts_a_task_s_own_warm_up() -> None:
    G = torch.randn(4, 3, 8, generator=torch.Generator().manual_seed(1)).double()
    method, alone = ExcessMTL(warmup=2), ExcessMTL(warmup=2)
    for step, rows in enumerate(G):
        present = "abc" if step % 2 else "ab"
        given = [[row] for row, _ in zip(rows, present, strict=False)]
        mtlkernels.aggregate(given, method, tasks=present)
        if step % 2:
            mtlkernels.aggregate([[rows[2]], [rows[0]]], alone, tasks="ca")
    assert (method.step - method.missed).tolist() == [4, 4, 2]
    torch.testing.assert_close(method.first[2], alone.first[0])


def test_shares_of_a_sum_stay_shares() -> None:
    G = torch.randn(3, 8, generator=torch.Generator().manual_seed(1)).double()
    for method in (mtlkernels.MoDo(), GradNorm(), mtlkernels.SDMGrad(), mtlkernels.MoCo()):
        total = 3 if isinstance(method, GradNorm) else 1
        name = "w" if hasattr(method, "w") else "weights"
        for present in ("abc", "ab", "bc", "abcd", "ad"):
            rows = [[G["abcd".index(n) % 3] * (1 + "abcd".index(n))] for n in present]
            mtlkernels.aggregate(rows, method, torch.ones(len(rows)).double(), tasks=present)
            share = getattr(method, name)
            want = total + (total == 3 and len(share) == 4)
            torch.testing.assert_close(share.sum(), torch.tensor(float(want)).double())


def test_learnt_numbers_of_absent_tasks_get_no_gradient() -> None:
    p = nn.Parameter(torch.ones(2))
    method = UW(3)
    mtlkernels.backward({"a": p.sum(), "b": None, "c": p.square().sum()}, [p], method)
    assert method.s.grad[1] == 0
    assert (method.s.grad[[0, 2]] != 0).all()


def test_row_methods_are_all_walked() -> None:
    assert {f"{name} on rows" for name in ROW_METHODS} <= set(MANY)


@pytest.mark.parametrize("present", ["abc", "ac"])
@pytest.mark.parametrize("name", LOSS_METHODS)
def test_a_backward_that_raises_leaves_the_state(name: str, present: str) -> None:
    model, optimizer = made(LOSS_METHODS[name](3))
    if learned := list(optimizer.method.parameters()):
        optimizer.add_param_group({"params": learned})
    for _ in range(3):
        optimizer.backward(model(X, "abc")[1])
    before = {key: value.clone() for key, value in optimizer.method.state_dict().items()}
    optimizer.zero_grad()
    losses = model(X, present)[1]
    sum(loss for loss in losses.values() if loss is not None).backward()  # frees the graph
    optimizer.zero_grad()
    with pytest.raises(RuntimeError):
        optimizer.backward(losses)
    after = optimizer.method.state_dict()
    assert after.keys() == before.keys()
    for key, value in before.items():
        assert torch.equal(after[key], value), key
    assert all(param.grad is None for param in model.parameters())
