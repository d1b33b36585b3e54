"""The benchmark: it checks before it times, and says why something has no time."""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path

import pytest
import torch

import mtlkernels
from benchmarks.suite import direction as compare
from benchmarks.suite import memory, plans
from benchmarks.suite import timing as measure
from benchmarks.suite.cases import CASES, gradients, numel
from benchmarks.suite.command import main
from benchmarks.suite.direction import Setting
from benchmarks.suite.oracle import oracle
from benchmarks.suite.pages import BLOCKS, fill
from benchmarks.suite.providers import PROVIDERS, SLOW_TO_SET_UP
from benchmarks.suite.results import Results, Row, load
from benchmarks.suite.targets import targets

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
PINN = Setting("pinn", 3, torch.float32, "pcgrad", CPU)

# Published totals: practice of the field, not of this package.
TOTALS = {
    "pinn": (12, 10_401),
    "lenet": (6, 21_330),
    "resnet18": (60, 11_176_512),
    "mmoe": (32, 12_595_200),
    "resnet50": (159, 23_508_032),
    "lora": (448, 41_943_040),
    "vit_b": (150, 85_798_656),
    "vit_l": (294, 303_301_632),
    "llama_1b": (146, 1_235_814_400),
}


@pytest.mark.parametrize("case", TOTALS)
def test_cases_have_their_models_sizes(case):
    shapes = CASES[case]()
    assert (len(shapes), numel(shapes)) == TOTALS[case]


@pytest.mark.parametrize("tasks", [2, 3, 8])
@pytest.mark.parametrize("name", [name for name in PROVIDERS if name not in SLOW_TO_SET_UP])
def test_every_provider_gives_pcgrads_direction(name, tasks, one_thread):
    grads = gradients(CASES["pinn"](), tasks, torch.float32)
    try:
        run = PROVIDERS[name](tasks, "pcgrad")(grads)
    except RuntimeError as reason:
        pytest.skip(str(reason))
    kept = [grad.clone() for grad in grads]
    right = oracle(grads, tasks, "pcgrad")
    assert right.error(run(), grads) <= right.tolerance
    assert right.error(run(), grads) <= right.tolerance  # in its second run too
    assert all(map(torch.equal, grads, kept))


@pytest.mark.parametrize("method", ["mgda", "upgrad", "cagrad", "mean", "imtlg"])
@pytest.mark.parametrize("name", ["ours", "stack + matmul", "torch._foreach", "torchjd"])
def test_other_methods_are_checked_as_well(name, method, one_thread):
    if name == "torchjd":
        pytest.importorskip("torchjd")
    grads = gradients(CASES["pinn"](), 3, torch.float32)
    right = oracle(grads, 3, method)
    limit = 0.2 if (name, method) == ("torchjd", "mgda") else right.tolerance  # steps, not a solver
    assert right.error(PROVIDERS[name](3, method)(grads)(), grads) <= limit


def test_the_check_tells_a_wrong_direction():
    grads = gradients(CASES["pinn"](), 3, torch.float32)
    right = oracle(grads, 3, "pcgrad")
    assert right.tolerance < 0.02
    plain_sum = [sum(column) for column in zip(grads[:12], grads[12:24], grads[24:], strict=True)]
    direction = PROVIDERS["ours"](3, "pcgrad")(grads)()
    assert right.error(plain_sum, grads) > right.tolerance
    assert right.error([d * 1.03 for d in direction], grads) > right.tolerance
    assert right.error(direction[:-1], grads) == float("inf")


def test_what_is_wrong_fails_or_is_missing_gets_no_time(monkeypatch, one_thread):
    def scaled(tasks, method):
        prepare = PROVIDERS["ours"](tasks, method)
        return lambda grads: lambda: [2 * d for d in prepare(grads)()]

    def failing(tasks, method):
        raise ZeroDivisionError("by zero, says the peer\nand more")

    monkeypatch.setitem(PROVIDERS, "scaled", scaled)
    monkeypatch.setitem(PROVIDERS, "failing", failing)
    monkeypatch.setitem(sys.modules, "conflictfree", None)
    monkeypatch.delitem(sys.modules, "conflictfree.grad_operator", raising=False)
    rows = compare.compare(PINN, ["ours", "scaled", "failing", "conflictfree"], 0.0)
    found = {row.name: row for row in rows}
    assert found["ours"].seconds is not None
    assert found["ours"].over_copy is not None
    if mtlkernels.backends()["cpu"]["pcgrad"]["serves"] == "native":
        assert found["ours"].reads == 0  # the reference's solvers look at K
    assert "wrong by 1" in found["scaled"].told
    assert found["failing"].told == "by zero, says the peer"
    assert "pip install 'mtlkernels[bench]'" in found["conflictfree"].told
    assert {found[name].seconds for name in ("scaled", "failing", "conflictfree")} == {None}


def test_what_does_not_fit_the_memory_says_so(monkeypatch):
    monkeypatch.setattr(compare, "available_bytes", lambda: 100_000)
    (row,) = compare.compare(PINN, ["ours"], 0.0)
    assert row.seconds is None
    assert row.told == "needs 0.0 GB, and 0.0 GB are free"


def test_turns_are_taken_in_turn_and_the_slow_take_fewer():
    calls = []
    runs = {"fast": lambda: calls.append("fast"), "slow": lambda: time.sleep(0.02)}
    seconds = measure.interleaved(runs, 0.15)
    assert len(seconds["fast"]) >= measure.LEAST_ROUNDS
    assert measure.LEAST_TURNS <= len(seconds["slow"]) < len(seconds["fast"])
    assert min(seconds["slow"]) >= 0.02


def test_the_cpu_clock_leaves_out_what_a_thread_waited_for():
    runs = {"waits": lambda: time.sleep(0.01)}
    (fast,) = measure.timings(runs, 0.0, CPU, "cpu").values()
    (slow,) = measure.timings(runs, 0.0, CPU, "wall").values()
    assert fast.high < 0.005 < slow.low
    assert (fast.how, slow.how) == ("cpu", "wall")


def test_gradients_rotate_among_more_than_a_cache_holds():
    seen = []
    run = measure.rotating([lambda k=k: seen.append(k) for k in range(3)])
    for _ in range(7):
        run()
    assert seen == [0, 1, 2, 0, 1, 2, 0]
    assert measure.sets_of(1 << 20) == 64
    assert measure.sets_of(1 << 30) == 1
    assert measure.sets_of(1) == measure.MOST_SETS


def test_what_a_run_does_is_counted():
    x = torch.ones(1000)

    def run():
        y = x * 2  # 4000 bytes
        z = y + 1  # 4000 more
        del y
        return float(z.sum())  # a read

    seen = memory.observe(run, CPU)
    assert 8000 <= seen.peak <= 8192
    assert seen.reads == 1
    assert seen.operators == 4  # mul, add, sum, item


def test_the_command_measures_saves_draws_and_writes(tmp_path, capsys):
    for package in ("matplotlib", "torchjd"):
        pytest.importorskip(package)
    saved, figures, page = tmp_path / "run.json", tmp_path / "figures", tmp_path / "page.md"
    blocks = [f"<!-- bench: {name} -->\nold\n<!-- bench: end -->" for name in BLOCKS]
    page.write_text("\n\n".join(["before", *blocks, "after\n"]))
    small = ["--case", "pinn", "--tasks", "3", "--dtype", "float32", "--seconds", "0.01"]
    assert main([*small, "--threads", "1", "--providers", "torchjd", "--json", str(saved)]) == 0
    printed = capsys.readouterr().out
    for part in ("copy", "ours", "torchjd", "balancing", "x copy", "host reads"):
        assert part in printed
    content = json.loads(saved.read_text())
    assert {"processor", "threads", "torch", "commit", "load_after"} <= content[
        "environment"
    ].keys()
    assert {row["name"] for row in content["rows"]} >= {"copy", "ours", "torchjd", "forward"}
    read = ["--from", str(saved), "--plot", str(figures), "--update", str(page)]
    assert main(read) == 0
    assert {path.name for path in figures.iterdir()} == {"speedup.png", "step.png"}
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "| PINN, 5 x 50 | 0.01 M | 3 |" in text
    assert main(read) == 0
    assert page.read_text() == text


def test_results_survive_the_file(tmp_path):
    row = Row("providers", "pinn", 3, "float32", "pcgrad", "ours", 12, 10_401, 2, bytes=7)
    timed = Row(
        *("providers", "pinn", 3, "float32", "pcgrad", "copy", 12, 10_401, 2),
        seconds=(0.1, 0.2, 0.3),
        turns=7,
        copy=0.4,
        told="",
    )
    results = Results({"torch": "2"}, [row, timed])
    results.save(tmp_path / "x.json")
    assert load(tmp_path / "x.json") == results
    (tmp_path / "y.json").write_text("[]")
    with pytest.raises(ValueError, match="does not hold results"):
        load(tmp_path / "y.json")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--case", "alexnet"], "'alexnet' is none of"),
        (["--tasks", "0"], "'0' is not a list of positive whole numbers"),
        (["--methods", "uw"], "'uw' is a loss method"),
        (["--providers", "libmtl"], "'libmtl' is none of"),
        (["--suites", "all"], "'all' is none of"),
        (["--clock", "cpu", "--threads", "2"], "add --threads 1"),
    ],
)
def test_wrong_arguments_are_told_in_a_sentence(arguments, sentence, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert sentence in capsys.readouterr().err


def test_a_missing_file_and_an_unknown_block_are_told_in_a_sentence(tmp_path, capsys):
    assert main(["--from", str(tmp_path / "none.json")]) == 1
    assert "none.json" in capsys.readouterr().err
    with pytest.raises(ValueError, match="no block is called 'nothing'"):
        fill("<!-- bench: nothing -->\n<!-- bench: end -->", Results({}))


def test_targets_name_what_misses_them():
    def row(name, median):
        return Row(
            *("providers", "resnet18", 8, "float32", "pcgrad", name, 60, 11_176_512, 2),
            bytes=17 * 4 * 11_176_512,
            seconds=(median,) * 3,
            copy=0.01,
        )

    results = Results({}, [row("ours", 0.012), row("torchjd", 0.05), row("textbook loop", 0.6)])
    found = {target.measure: target for target in targets(results)}
    over_copy, _, _, torchjd = list(found.values())[:4]
    assert over_copy.missed == pytest.approx({"resnet18, T = 8": 1.2})
    assert torchjd.found == pytest.approx({"resnet18, T = 8": 0.05 / 0.012})
    assert not torchjd.missed
    assert found["the same, T = 8"].found == pytest.approx({"resnet18, T = 8": 50})


def test_plans_measure_what_is_asked_for():
    assert plans.tables(False, [], [], []) == plans.QUICK
    assert plans.tables(True, [], [], ["bfloat16"]) == [t for t in plans.FULL if t[2] == "bfloat16"]
    asked = plans.tables(False, ["pinn", "lenet"], [5], [])
    assert asked == [("pinn", 5, "float32"), ("lenet", 5, "float32")]
    assert plans.providers(["torchjd"], [], 3) == ["ours", "torchjd"]
    assert not set(SLOW_TO_SET_UP) & set(plans.providers([], CASES["pinn"](), 3))
    assert "textbook loop" in plans.providers([], CASES["resnet18"](), 8)
    assert "textbook loop" not in plans.providers([], CASES["resnet18"](), 20)


@pytest.mark.parametrize(
    ("document", "run"),
    [
        ("docs/benchmarks.md", "cpu.json"),
        ("benchmarks/results/cpu.md", "cpu.json"),
        ("docs/scaling.md", "cpu-scaling.json"),
    ],
)
def test_committed_tables_come_from_the_committed_run(document, run):
    text = (ROOT / document).read_text()
    assert re.search(r"<!-- bench: \w+ -->", text)
    assert fill(text, load(RESULTS / run)) == text


def test_the_command_reads_its_arguments(monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--help"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0
    assert "usage: python -m benchmarks" in capsys.readouterr().out
