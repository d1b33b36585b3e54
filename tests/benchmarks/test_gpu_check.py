"""The GPU check without a GPU: every stage on a stand-in, and results that survive being killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

from benchmarks.gpu_check import prepared, processes, stages
from benchmarks.gpu_check.records import Records, read
from benchmarks.gpu_check.summary import summary

ROOT = Path(__file__).parents[2]
NAMES = [stage.name for stage in stages.on_gpu()]
# A peer that is not installed says so in its row; so does one that needs a GPU.
EXPECTED = "NotOfferedError"


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


# ------------------------------------------------------------------------------- the whole check

NO_METADATA = """
import importlib.metadata
before = importlib.metadata.distribution
def distribution(name):
    if name == "mtlkernels":
        raise importlib.metadata.PackageNotFoundError(name)
    return before(name)
importlib.metadata.distribution = distribution
"""


@pytest.mark.slow
def test_every_stage_runs_on_the_stand_in(tmp_path: Path) -> None:
    """From a checkout that was built in place: no process of it finds metadata of the package."""
    (tmp_path / "sitecustomize.py").write_text(NO_METADATA)
    out = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu_check", "--stand-in", "--out", str(out)],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    lines = read(out)
    assert done.returncode == 0, done.stdout + (out / "log.txt").read_text()[-6000:]
    ends = {line["stage"]: line["how"] for line in lines if line["kind"] == "end"}
    assert ends == {name: "passed" for name in NAMES if name not in ("racecheck", "synccheck")}
    wrong = [x for x in lines if x.get("failed") and EXPECTED not in x["failed"]]
    wrong += [x for x in lines if x.get("outcome") == "failed"]
    assert wrong == []
    kinds = {name: {x["kind"] for x in lines if x["stage"] == name} for name in ends}
    assert kinds["facts"] >= {"machine", "build", "backends"}
    assert all("test" in kinds[name] for name in ("ops", "native-tests", "triton-tests"))
    assert all("row" in kinds[n] for n in ("native-rows", "solver-rows", "triton-rows", "peers"))
    assert "step" in kinds["steps"]
    assert "ran" in kinds["memcheck"]
    files = sorted(path.name for path in out.iterdir())
    assert files == ["log.txt", "results.jsonl", "summary.md"]
    assert sum(path.stat().st_size for path in out.iterdir()) < 2 << 20


# ---------------------------------------------------------------------------------------- killed

# The check with commands in place of its stages: all end at once but one, which writes a row and
# then waits for ever, deaf to SIGINT.
ONE_HANGS = """
import sys
from dataclasses import replace
from benchmarks.gpu_check import __main__ as main, stages
HANG = '''
import signal, time
from benchmarks.gpu_check.records import Records
signal.signal(signal.SIGINT, signal.SIG_IGN)
Records.of_this_stage().add("row", run="first", seconds=1.0)
time.sleep(600)
'''
found = [
    replace(s, command=[sys.executable, "-c", HANG if s.name == sys.argv[1] else ""], native=False)
    for s in stages.on_gpu()
]
stages.on_stand_in = lambda: found
sys.argv = ["gpu_check", "--stand-in", "--out", sys.argv[2]]
sys.exit(main.main())
"""


def wait_for_row(process: subprocess.Popen[str], out: Path) -> None:
    """Until the stage that hangs has written its row."""
    end = time.monotonic() + 60
    while not any(line["kind"] == "row" for line in read(out)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)


# What a process can catch, in every stage; what it cannot is the same in all of them.
KILLED = [(name, signal.SIGTERM) for name in NAMES]
KILLED += [(name, signal.SIGKILL) for name in (NAMES[0], NAMES[-1])]


@pytest.mark.parametrize(("name", "number"), KILLED)
def test_killed_in_a_stage_it_leaves_the_results(name: str, number: int, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = subprocess.Popen(
        [*python(ONE_HANGS), name, str(out)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        wait_for_row(process, out)
        process.send_signal(number)
        process.communicate(timeout=30)
    finally:
        process.kill()
    lines = read(out)
    place = NAMES.index(name)
    assert [x["stage"] for x in lines if x["kind"] == "end"] == NAMES[:place]
    assert [x["stage"] for x in lines if x["kind"] == "begin"] == NAMES[: place + 1]
    assert [x["stage"] for x in lines if x["kind"] == "row"] == [name]
    if number == signal.SIGTERM:
        assert "first" in (out / "summary.md").read_text()


def alive(pid: int) -> bool:
    """Whether a process runs on; one that nobody has waited for yet does not.

    A signal takes effect when the process next gets a processor, so this looks for ten seconds.
    """
    end = time.monotonic() + 10
    while time.monotonic() < end:
        try:
            if "State:\tZ" in Path(f"/proc/{pid}/status").read_text():
                return False
        except FileNotFoundError:
            return False
        time.sleep(0.01)
    return True


DEAF = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(child.pid, flush=True)
time.sleep(600)
"""


def test_at_its_limit_a_stage_ends_with_all_that_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "GRACE", 0.2)
    log = tmp_path / "log.txt"
    ended = processes.run(python(DEAF), 4.0, log, tmp_path, os.environ)
    assert ended.how == "ran out of its 4 s"
    assert not alive(int(log.read_text()))


def test_a_stage_may_tell_what_it_knows_at_its_limit(tmp_path: Path) -> None:
    code = "import time\ntry: time.sleep(600)\nexcept KeyboardInterrupt: print('so far')"
    log = tmp_path / "log.txt"
    ended = processes.run(python(code), 3.0, log, tmp_path, os.environ)
    assert ended.how == "ran out of its 3 s"
    assert log.read_text() == "so far\n"


@pytest.mark.parametrize(
    ("command", "how"),
    [
        (python(""), "passed"),
        (python("raise SystemExit(3)"), "failed with status 3"),
        (["/no/such/program"], "could not be started"),
    ],
)
def test_how_a_stage_ends(command: list[str], how: str, tmp_path: Path) -> None:
    ended = processes.run(command, 60, tmp_path / "log.txt", tmp_path, os.environ)
    assert how in ended.how


# ------------------------------------------------------------------------------------ its parts

TESTS = """
import pytest
def test_good(): pass
def test_bad(): assert 1 + 1 == 3
@pytest.fixture
def broken(): raise ValueError("no such thing")
def test_setup(broken): pass
def test_skipped(): pytest.skip("not here")
"""


def test_each_test_is_a_line_with_its_traceback(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(TESTS)
    subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "benchmarks.gpu_check.plugin", "test_it.py"],
        cwd=tmp_path, capture_output=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "GPU_CHECK_OUT": str(tmp_path),
             "GPU_CHECK_STAGE": "ops"},
    )  # fmt: skip
    told = {x["test"].split("::")[1]: x for x in read(tmp_path)}
    assert {name: line["outcome"] for name, line in told.items()} == {
        "test_good": "passed",
        "test_bad": "failed",
        "test_setup": "failed",
        "test_skipped": "skipped",
    }
    assert "assert 1 + 1 == 3" in told["test_bad"]["traceback"]
    assert "no such thing" in told["test_setup"]["traceback"]
    assert told["test_skipped"]["reason"].endswith("not here")


def test_a_line_cut_short_is_left_out(tmp_path: Path) -> None:
    Records(tmp_path, "facts").add("machine", gpu="one")
    with (tmp_path / "results.jsonl").open("a") as file:
        file.write('{"stage": "facts", "ki')
    assert read(tmp_path) == [{"stage": "facts", "kind": "machine", "gpu": "one"}]


def test_the_summary_names_what_failed(tmp_path: Path) -> None:
    records = Records(tmp_path, "ops")
    records.add(
        "test", test="test_gpu.py::test_gram", outcome="failed", traceback="E  assert 1 == 2"
    )
    records.add("row", run="gram", T=3, case="lenet", seconds=2e-6, bytes=10**6)
    records.add("share", run="gram", T=3, case="lenet", bytes=10**6, of_copy=0.5)
    records.add("end", how="failed with status 1", seconds=3.0)
    text = summary(read(tmp_path))
    assert "test_gpu.py::test_gram: `E  assert 1 == 2`" in text
    assert "| ops | failed with status 1 | 3 | 0 | 1 | 0 | 1 | 0 |" in text
    assert "| ops | lenet gram T=3 | 2.0 | 500 | 0.50 |" in text


def test_prepared_libraries_of_this_python_are_put_in_place(tmp_path: Path) -> None:
    folder, package = tmp_path / ".gpu", tmp_path / "package"
    (folder / prepared.LIBRARIES).mkdir(parents=True)
    package.mkdir()
    mine = f"_C_cuda{EXTENSION_SUFFIXES[0]}"
    for name in (mine, "_C_cuda.cpython-39-x86_64-linux-gnu.so"):
        (folder / prepared.LIBRARIES / name).write_text(name)
    assert prepared.put_in_place(folder, package) == [mine]
    assert [path.name for path in package.iterdir()] == [mine]


def test_the_stages_fit_into_seven_minutes() -> None:
    assert sum(stage.seconds for stage in stages.on_gpu()) <= 400
    assert len(NAMES) == len(set(NAMES))
