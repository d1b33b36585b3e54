"""Runs of the imbalance study: they survive being killed, and what is stale is run again."""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import study_toy
import torch

import mtlkernels
from studies.imbalance import problems, results, runner, specs
from studies.imbalance.recipes import RECIPES
from studies.imbalance.results import MissingRunError, best_weights
from studies.imbalance.runner import run_study
from studies.imbalance.specs import (
    Spec,
    best_spec,
    method_spec,
    pretrain_of,
    single_spec,
)
from studies.imbalance.storage import Folder
from studies.imbalance.training import Training, execute

pytest.importorskip("tqdm")

ROOT = Path(__file__).parents[2]
PART = study_toy.STUDY.parts[0]


@pytest.fixture(scope="module", autouse=True)
def toy():
    with study_toy.registered():
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Folder, float]:
    """The whole toy study without a break, and the seconds that it took."""
    folder = Folder(tmp_path_factory.mktemp("unbroken"))
    start = time.perf_counter()
    run_study(study_toy.STUDY, folder)
    return folder, time.perf_counter() - start


def numbers(folder: Folder) -> dict[str, dict]:
    """All results without the seconds, by problem and run."""
    found = {}
    for problem, content in lines(folder):
        del content["cost"]["seconds"], content["cost"]["jobs"]
        found[f"{problem}/{content['run']}"] = content
    return found


def lines(folder: Folder) -> list[tuple[str, dict]]:
    """Each line of the results, with its problem."""
    return [
        (path.stem, json.loads(line))
        for path in sorted(folder.root.glob("*.jsonl"))
        for line in path.read_text().splitlines()
        if line
    ]


def test_killed_at_a_random_moment_and_started_again_it_ends_with_the_same_numbers(
    finished, tmp_path
):
    unbroken, seconds = finished
    seed = int.from_bytes(os.urandom(4), "little")
    print(f"random.Random({seed})")
    chance = random.Random(seed)
    limit = 0.7 * seconds
    while True:
        folder = Folder(tmp_path / f"{limit}")
        with subprocess.Popen(
            [sys.executable, ROOT / "tests" / "helpers" / "study_toy.py", folder.root],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"started\n"
            time.sleep(chance.uniform(0, limit))
            process.send_signal(signal.SIGKILL)
        if process.returncode == -signal.SIGKILL:
            break
        limit /= 2  # it was too fast and had ended
    run_study(study_toy.STUDY, folder)
    assert numbers(folder) == numbers(unbroken)
    assert not folder.work.exists()


def test_several_at_a_time_end_with_the_same_numbers_and_tell_so(finished, tmp_path):
    folder = Folder(tmp_path)
    subprocess.run(
        [sys.executable, ROOT / "tests" / "helpers" / "study_toy.py", folder.root, "2"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        check=True,
    )
    assert numbers(folder) == numbers(finished[0])
    for held, jobs in ((folder, 2), (finished[0], 1)):
        assert {result["cost"]["jobs"] for _, result in lines(held)} == {jobs}


def test_workers_are_heard_to_their_end_though_another_failed(tmp_path, monkeypatch):
    specs = [single_spec(study_toy.STUDY, PART, t, "full", 0) for t in ("small", "large")]
    heard: list[int] = []
    bar = SimpleNamespace(update=heard.append, set_postfix_str=lambda text: None)
    begun = threading.Event()  # a run that waits in the queue when another fails is cancelled

    def execute(spec: Spec, folder: Folder, every: int, told: Callable, jobs: int) -> None:
        if spec.task == "small":
            assert begun.wait(60)
            raise ValueError("this one fails")
        begun.set()
        time.sleep(0.2)  # by now the failure is known
        for _ in range(9):
            told(1)

    def threads(jobs: int, context: object, begin: Callable, arguments: tuple) -> Executor:
        return ThreadPoolExecutor(jobs, "worker", begin, arguments)

    monkeypatch.setattr(runner, "execute", execute)
    monkeypatch.setattr(runner, "ProcessPoolExecutor", threads)
    monkeypatch.setattr(runner, "_told", None)
    with pytest.raises(ValueError, match="this one fails"):
        runner._run_apart(specs, study_toy.STUDY, Folder(tmp_path), 2, bar)
    assert sum(heard) == 9


@pytest.mark.parametrize("method", [m for m in study_toy.EVERYTHING.methods if m != "grid"])
def test_a_checkpoint_holds_all_that_a_method_changes(method, tmp_path):
    spec = Spec(replace(PART, steps=7), "method", method, "full", 3, watch_every=2)
    whole = Folder(tmp_path / "whole")
    execute(spec, whole, 100, lambda steps: None)
    cut = Folder(tmp_path / "cut")
    training = Training(spec)
    for _ in range(4):
        training.step()
    cut.save(spec, "checkpoint", training.state())
    torch.manual_seed(99)
    told: list[int] = []
    execute(spec, cut, 100, told.append)
    assert sum(told) == 7
    assert told[0] == 4
    assert numbers(cut) == numbers(whole)


def test_a_write_that_is_cut_off_leaves_what_was_there(tmp_path, monkeypatch):
    spec = method_spec(study_toy.STUDY, PART, "equal", "full", 0)
    folder = Folder(tmp_path)
    folder.save(spec, "checkpoint", {"done": 1})

    def cut_off(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", cut_off)
    with pytest.raises(KeyboardInterrupt):
        folder.save(spec, "checkpoint", {"done": 2})
    assert folder.load(spec, "checkpoint") == {"done": 1}
    assert folder.result(spec) is None
    monkeypatch.setattr(os, "fsync", cut_off)
    with pytest.raises(KeyboardInterrupt):
        folder.finish(spec, {"cost": {}})
    assert folder.load(spec, "checkpoint") == {"done": 1}


def test_results_of_another_configuration_do_not_count(finished):
    folder, _ = finished
    spec = method_spec(study_toy.STUDY, PART, "equal", "full", 0)
    assert folder.result(spec) is not None
    longer = replace(spec, part=replace(PART, steps=25))
    assert folder.result(longer) is None
    with pytest.raises(MissingRunError, match="run the study first"):
        results.result_of(folder, longer)


def test_results_of_another_cut_of_the_data_do_not_count(finished, monkeypatch):
    spec = method_spec(study_toy.STUDY, PART, "equal", "full", 0)
    other = replace(study_toy.toy_data(), caption="toy: cut otherwise")
    monkeypatch.setitem(problems.DATA, "toy", lambda: other)
    assert finished[0].result(spec) is None


@pytest.mark.parametrize(
    "changed", [{"heads": True}, {"last": True}, {"make": lambda tasks, seed: mtlkernels.CAGrad()}]
)
def test_results_of_another_recipe_do_not_count(changed, finished, monkeypatch):
    folder, _ = finished
    spec = method_spec(study_toy.STUDY, PART, "pcgrad", "full", 0)
    assert folder.result(spec) is not None
    monkeypatch.setitem(RECIPES, "pcgrad", replace(RECIPES["pcgrad"], **changed))
    assert folder.result(spec) is None
    assert folder.result(method_spec(study_toy.STUDY, PART, "equal", "full", 0)) is not None


def test_results_of_an_earlier_protocol_do_not_count(finished, monkeypatch):
    spec = single_spec(study_toy.STUDY, PART, "large", "full", 0)
    assert finished[0].result(spec) is not None
    monkeypatch.setattr("studies.imbalance.specs.PROTOCOL", specs.PROTOCOL + 1)
    assert finished[0].result(spec) is None


def test_nothing_is_run_twice(finished, monkeypatch):
    folder, _ = finished

    def run(*_: object) -> None:
        raise AssertionError("a finished run was started again")

    monkeypatch.setattr("studies.imbalance.runner.execute", run)
    run_study(study_toy.STUDY, folder)


def test_a_finished_study_trains_its_encoders_anew_for_what_was_deleted(finished, tmp_path):
    root = tmp_path / "again"
    shutil.copytree(finished[0].root, root)
    file = root / "toy-mlp.jsonl"
    dropped = ("pretrained/grid-seed0", "pretrained/avgnorm-sum-last-seed1")
    kept = [
        line for line in file.read_text().splitlines() if json.loads(line)["run"] not in dropped
    ]
    file.write_text("\n".join(kept))  # without a newline at its end
    run_study(study_toy.STUDY, Folder(root))
    assert numbers(Folder(root)) == numbers(finished[0])


def test_other_levels_choose_anew_in_every_setting(finished, tmp_path):
    root = tmp_path / "again"
    shutil.copytree(finished[0].root, root)
    other = replace(study_toy.STUDY, parts=(replace(PART, levels=(2.0, 4.0)),))
    run_study(other, Folder(root))
    (part,) = other.parts
    best = best_weights(other, Folder(root), part)
    assert min(best) == 2
    for setting, seed in itertools.product(("full", "half", "pretrained"), other.seeds):
        assert Folder(root).result(best_spec(other, part, setting, seed, best)) is not None


def test_methods_of_a_seed_share_start_and_batches_and_heads_alone_are_left_out():
    single, equal, cagrad = (
        Training(spec)
        for spec in (
            single_spec(study_toy.STUDY, PART, "large", "full", 5),
            method_spec(study_toy.STUDY, PART, "equal", "full", 5),
            method_spec(study_toy.STUDY, PART, "cagrad", "full", 5),
        )
    )
    assert set(single.model.heads) == {"large"}
    for name, value in single.model.state_dict().items():
        assert torch.equal(value, equal.model.state_dict()[name])
        assert torch.equal(value, cagrad.model.state_dict()[name])
    assert torch.equal(equal.batches.get_state(), cagrad.batches.get_state())
    other = Training(method_spec(study_toy.STUDY, PART, "equal", "full", 6))
    assert not torch.equal(equal.batches.get_state(), other.batches.get_state())


WEIGHTED = ("avgnorm-sum-last", "avgnorm-max-all", "slw", "ntkmtl", "imtlg", "nashmtl")


@pytest.mark.parametrize("method", [*WEIGHTED, "dbmtl", "pcgrad", "cagrad", "fairgrad"])
def test_heads_get_the_weights_where_the_losses_are_weighed(method):
    training = Training(method_spec(study_toy.STUDY, PART, method, "full", 0))
    losses = training._losses(training.data.draw("ab", 8, training.batches))
    biases = [head.bias for head in training.model.heads.values()]
    own = torch.stack(torch.autograd.grad(sum(losses.values()), biases, retain_graph=True))
    training._backward(losses)
    ratios = torch.stack([bias.grad for bias in biases]) / own
    assert (ratios - 1).abs().max() > 1e-3 if method in WEIGHTED else ratios.eq(1).all()


def test_the_pretrained_encoder_comes_from_the_other_half(finished, tmp_path):
    spec = method_spec(study_toy.STUDY, PART, "equal", "pretrained", 0)
    assert spec.halves == "a"
    assert pretrain_of(spec).halves == "b"
    with pytest.raises(RuntimeError, match="has not been trained yet"):
        execute(spec, Folder(tmp_path), 10, lambda steps: None)
    runs = {result["run"] for _, result in lines(finished[0])}
    assert {f"pretrained/{run}-seed0" for run in ("pretrain", "grid", "single-small")} <= runs


def test_a_run_starts_at_its_pretrained_encoder(tmp_path):
    folder = Folder(tmp_path)
    spec = method_spec(study_toy.STUDY, PART, "equal", "pretrained", 0)
    execute(pretrain_of(spec), folder, 100, lambda steps: None)
    saved = folder.load(pretrain_of(spec), "encoder")
    assert saved is not None
    fresh = Training(spec).model.encoder.state_dict()
    started = Training(spec, saved).model.encoder.state_dict()
    assert started.keys() == saved.keys()
    for name, value in saved.items():
        assert torch.equal(started[name], value)
        assert not torch.equal(fresh[name], value)


@pytest.mark.parametrize("kind", ["pretrained", "half"])
def test_only_pretrained_runs_get_the_encoder(kind, tmp_path, monkeypatch):
    folder = Folder(tmp_path)
    part = replace(PART, steps=1)
    spec = method_spec(study_toy.STUDY, part, "equal", kind, 0)
    execute(pretrain_of(spec), folder, 100, lambda steps: None)
    given: list[object] = []

    def start(spec: Spec, encoder: dict | None) -> Training:
        given.append(encoder)
        return Training(spec, encoder)

    monkeypatch.setattr("studies.imbalance.training.Training", start)
    execute(spec, folder, 100, lambda steps: None)
    assert [encoder is not None for encoder in given] == [kind == "pretrained"]
