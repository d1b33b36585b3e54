"""Several processes on gloo: the scenarios of dist_*.py, a rank that dies, examples, benchmark.

One start of a process group runs all scenarios that are for its number of ranks.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import dist_harness
import pytest
import torch
import torch.distributed as dist

from benchmarks.arithmetic import cluster
from mtlkernels.distributed import collectives

HERE = Path(__file__).parent
ROOT = HERE.parents[1]

pytestmark = pytest.mark.dist

MODULES = [
    *("dist_replicas", "dist_numbers", "dist_absent", "dist_agreement"),
    *("dist_fsdp", "dist_tensor_parallel", "dist_stages", "dist_checkpoints", "dist_refusals"),
    *("dist_traffic", "dist_heads_alone", "dist_names", "dist_absent_everywhere"),
    "dist_balanced_loss",
]
CASES = [(world, name) for world in (1, 2, 4) for name in dist_harness.scenarios(MODULES, world)]


class Starts:
    """Runs a number of processes when their first scenario is asked for.

    Args:
        modules: by number of processes, what is asked for.
        folder: what two ranks save here, four load.
    """

    def __init__(self, modules: dict[int, list[str]], folder: Path) -> None:
        self.modules, self.folder = modules, folder
        self.outcomes: dict[int, dist_harness.Outcome] = {}

    def outcome(self, world: int) -> dist_harness.Outcome:
        if "dist_checkpoints" in self.modules[world] and world == 4:
            self.outcome(2)
        if world not in self.outcomes:
            self.outcomes[world] = dist_harness.run(self.modules[world], world, self.folder)
        return self.outcomes[world]


@pytest.fixture(scope="module")
def starts(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Starts:
    """Of the modules that some selected test needs."""
    asked: dict[int, set[str]] = {1: set(), 2: set(), 4: set()}
    for item in request.session.items:
        if isinstance(item, pytest.Function) and item.function is test_scenario:
            asked[item.callspec.params["world"]].add(item.callspec.params["name"].split(".")[0])
    asked[2] |= asked[4] & {"dist_checkpoints"}
    modules = {world: [m for m in MODULES if m in names] for world, names in asked.items()}
    return Starts(modules, tmp_path_factory.mktemp("dist"))


@pytest.mark.parametrize(("world", "name"), CASES, ids=[f"{w}-{n}" for w, n in CASES])
def test_scenario(world: int, name: str, starts: Starts) -> None:
    if dist_harness.NCCL and torch.cuda.device_count() < world:
        pytest.skip(f"fewer than {world} GPUs")
    for rank, error in enumerate(starts.outcome(world)[name]):
        assert not error, f"rank {rank} of {world}: {error}"


def test_the_others_say_so_where_a_rank_dies_or_hangs() -> None:
    outcome = dist_harness.run(["dist_death"], 2)
    assert outcome["dist_death.a_rank_hangs"] == ["", ""]
    survivor, dead = outcome["dist_death.a_rank_dies"]
    assert not survivor, survivor
    assert "did not get there" in dead


def torchrun(script: Path, *arguments: str) -> str:
    """What two processes of torchrun print."""
    root = str(script.parent.parent)
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([root, str(HERE), str(HERE.parent / "helpers")]),
        "OMP_NUM_THREADS": "1",
    }
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *command, str(script), *arguments],
        env=env,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_guide_trains_on_two_processes() -> None:
    told = torchrun(HERE / "dist_guide.py")
    for rank in range(2):
        assert f"2 loops, rank {rank} of 2" in told


@pytest.mark.parametrize("name", ["ddp", "fsdp2"])
def test_an_example_trains_to_the_numbers_of_one_process(name: str) -> None:
    script = ROOT / "examples" / f"{name}.py"
    told = torchrun(script, "--steps", "8")
    spec = importlib.util.spec_from_file_location(name, script)
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    losses = example.train(8, torch.device("cpu"))
    left, right = re.findall(r"step   7  left (\S+)  right (\S+)", told)[0]
    torch.testing.assert_close(
        torch.tensor([float(left), float(right)]), losses[-1], rtol=1e-4, atol=1e-5
    )
    assert losses[-1].sum() < losses[0].sum()


def test_the_benchmark_counts_what_the_page_says() -> None:
    script = ROOT / "benchmarks" / "distributed.py"
    small = ["--ranks", "2", "--tasks", "3", "--width", "96", "--seconds", "0.1"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(script), *small],
        env=env,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    rows = re.findall(r"^(\S.*?)  +[\d.]+ +([\d.]+)", done.stdout, re.M)
    traffic = {name: float(times) for name, times in rows}
    expected = {
        "DDP, sum of losses": 1,
        "all-reduce T rows": 3,
        "rows (default)": 2,
        "rows in bfloat16": 1.25,
        "features": 1,
        "every=10": 1.1,
        "a loss method": 1,
        "FSDP2, sum of losses": 1.5,
        "FSDP2, rows": 2.5,
    }
    assert traffic == pytest.approx(expected, rel=0.04)


@pytest.mark.parametrize("new", [True, False])
def test_collectives_of_new_and_old_names(new: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch 2.13 renamed two: where the new names are there, the old ones are not touched."""
    called = []

    def named(name: str) -> Any:
        return lambda *tensors, **options: called.append(name)

    for name in ("reduce_scatter_single", "all_gather_single"):
        monkeypatch.delattr(dist, name, raising=False)
        if new:
            monkeypatch.setattr(dist, name, named(name), raising=False)
    for name in ("reduce_scatter_tensor", "all_gather_into_tensor"):
        monkeypatch.setattr(dist, name, named(name))
    tensor = torch.zeros(1)
    collectives.reduce_scatter(tensor, tensor, None)
    collectives.all_gather(tensor, tensor, None)
    expected = {
        True: ["reduce_scatter_single", "all_gather_single"],
        False: ["reduce_scatter_tensor", "all_gather_into_tensor"],
    }
    assert called == expected[new]


def test_the_page_has_the_table_that_the_simulation_prints() -> None:
    page = (ROOT / "docs" / "distributed.md").read_text()
    assert cluster.table(cluster.Job()) in page


def test_the_simulation_by_hand() -> None:
    """Two tasks of 100 ms, rows of 40 ms: what is exposed is the last row, and the direction."""
    job = cluster.Job(
        numbers=1e9, tasks=2, forward=50, backward=100, inside=4e9 * 7 / 8 / 0.04, latency=0
    )
    found = cluster.rows(job, 8)
    assert found.step == pytest.approx(50 + 2 * 100 + 40 + 40)
    assert found.exposed == pytest.approx(80)
    slow = cluster.rows(dataclasses.replace(job, inside=job.inside / 5), 8)
    assert slow.exposed == pytest.approx(200 + 200 - 100 + 200)  # rows queue behind each other
