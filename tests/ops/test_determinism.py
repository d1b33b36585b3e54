"""The same bits on any number of threads, in any process; and every instruction set is right."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import inputs
import pytest
import torch
from torch import Tensor

import mtlkernels
from mtlkernels import CAGrad, PCGrad, ops

HERE = Path(__file__).parent

# Large enough that two threads share the work; many small tensors; more tasks than a register tile.
SHAPES = {
    2: [(300, 401), (70_001,)],
    5: [(11,), (90_000,), (3, 3, 64, 64)],
    13: [(40_000,), (17,)] + 50 * [(5, 7)],
}


def big_sample(num_tasks: int, dtype: torch.dtype) -> list[list[Tensor]]:
    generator = torch.Generator().manual_seed(num_tasks)
    return [
        [torch.randn(shape, generator=generator).to(dtype) for shape in SHAPES[num_tasks]]
        for _ in range(num_tasks)
    ]


def answers(num_tasks: int, dtype: torch.dtype) -> list[Tensor]:
    """Everything a step computes, for gradients that a seed determines."""
    rows = big_sample(num_tasks, dtype)
    grads = [grad for row in rows for grad in row]
    found = [ops.gram(grads, num_tasks), ops.combine(grads, inputs.sample_weights(num_tasks))]
    out = torch.ones_like(found[1])
    ops.combine_out(grads, inputs.sample_weights(num_tasks), out, 0.5)
    found.append(out)
    if dtype in (torch.bfloat16, torch.float16):
        wide = torch.ones_like(out, dtype=torch.float32)
        ops.combine_out(grads, inputs.sample_weights(num_tasks), wide, 0.5)
        found.append(wide)
    for method in (PCGrad(seed=3), CAGrad()):
        direction, report = mtlkernels.aggregate(rows, method)
        found += [report.gram, report.weights, report.status, *direction]
    seed, step, ones = torch.tensor(3), torch.tensor(1), torch.ones(num_tasks).double()
    found.append(ops.graddrop(grads, num_tasks, seed, step, 0.3 * ones))
    found.append(ops.trimmed_mean(grads, num_tasks, (num_tasks - 1) // 2))
    state = torch.zeros(num_tasks, len(out), dtype=torch.promote_types(dtype, torch.float32))
    found.append(ops.track_gram(grads, num_tasks, ones, torch.tensor(0.3).double(), state))
    found += [state.clone(), ops.excess(grads, num_tasks, 1e-7, state.square_()), state]
    return found


def assert_same_bits(a: list[Tensor], b: list[Tensor]) -> None:
    for x, y in zip(a, b, strict=True):
        assert x.dtype == y.dtype
        assert x.isfinite().all()
        assert torch.equal(x, y)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("num_tasks", SHAPES)
def test_threads_make_no_difference(num_tasks: int, float_dtype: torch.dtype) -> None:
    one = answers(num_tasks, float_dtype)
    torch.set_num_threads(2)
    assert_same_bits(one, answers(num_tasks, float_dtype))


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("num_tasks", SHAPES)
def test_runs_make_no_difference(num_tasks: int, float_dtype: torch.dtype) -> None:
    assert_same_bits(answers(num_tasks, float_dtype), answers(num_tasks, float_dtype))


# --------------------------------------------------------------------------------- subprocesses


def python(script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a script on the same package, with the tests' modules at hand."""
    package = Path(mtlkernels.__file__).parent.parent
    path = os.pathsep.join([str(package), str(HERE.parent / "helpers")])
    return subprocess.run(
        [sys.executable, "-c", script, *arguments],
        cwd=HERE,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


SAVE = """
import sys, torch, inputs, test_determinism
torch.save({name: test_determinism.answers(5, dtype) for name, dtype in inputs.DTYPES.items()},
           sys.argv[1])
"""


@pytest.mark.usefixtures("one_thread")
def test_processes_make_no_difference(tmp_path: Path) -> None:
    done = python(SAVE, str(tmp_path / "answers.pt"))
    assert done.returncode == 0, done.stderr
    for name, saved in torch.load(tmp_path / "answers.pt").items():
        assert_same_bits(saved, answers(5, inputs.DTYPES[name]))


# A failed sample is told by its name and dtype, so that one run names all of them.
CHECK = """
import inputs, mtlkernels, row_formulas, sys
from mtlkernels import ops
failed, checked = [], 0
for dtype in map(inputs.DTYPES.get, sys.argv[1:] or inputs.DTYPES):
    for name, grads, num_tasks in inputs.gradient_lists(dtype):
        weights = inputs.sample_weights(num_tasks)
        try:
            inputs.check_gram(ops.gram(grads, num_tasks), grads, num_tasks)
            inputs.check_combine(ops.combine(grads, weights), grads, weights)
            if dtype.itemsize == 2:
                out = inputs.torch.ones_like(ops.combine(grads, weights)).float()
                old = out.clone()
                ops.combine_out(grads, weights, out, 0.5)
                inputs.check_combine(out, grads, weights, old, 0.5, out.dtype)
            if name != "streamed" and len(grads) < 300:
                row_formulas.check_rows(grads, num_tasks)
        except AssertionError:
            failed.append(f"{name} {dtype}")
        checked += 1
print(mtlkernels.backends()["cpu"]["gram"]["serves"],
      mtlkernels.build_info().get("instruction_set"), checked)
raise SystemExit("\\n".join(failed) or 0)
"""
CHECKED = len(inputs.DTYPES) * len(inputs.SAMPLES)
CAPABILITIES = {"default": "baseline", "avx2": "avx2", "avx512": "avx512"}


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_each_instruction_set(capability: str) -> None:
    pytest.importorskip(
        "mtlkernels._C",
        reason="instruction sets are native: this package was built with MTLKERNELS_NO_EXT=1",
    )
    name = CAPABILITIES[capability]
    if mtlkernels.backends()["cpu"]["gram"]["serves"] == "native":
        if name not in mtlkernels.build_info()["instruction_sets_found"]:
            pytest.skip(f"this processor has no {name}")
        if name == mtlkernels.build_info()["instruction_set"]:
            pytest.skip(f"this very process runs {name}: test_ops.py covers it")
    done = python(CHECK, ATEN_CPU_CAPABILITY=capability, MTLKERNELS_BACKEND="native")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["native", name, str(CHECKED)]


def test_forced_reference() -> None:
    done = python(CHECK, "float32", MTLKERNELS_BACKEND="reference")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["reference", "None", str(len(inputs.SAMPLES))]


@pytest.mark.parametrize(
    ("forced", "reason"),
    [
        (
            "triton",
            "MTLKERNELS_BACKEND=triton cannot serve. cpu: Triton kernels serve GPUs, and the CPU "
            "under TRITON_INTERPRET=1 alone; cuda:",
        ),
        ("cublas", "MTLKERNELS_BACKEND=cublas: choose one of native, triton, reference"),
    ],
)
def test_a_backend_that_cannot_serve_says_why(forced: str, reason: str) -> None:
    done = python("import mtlkernels", MTLKERNELS_BACKEND=forced)
    assert done.returncode == 1
    assert f"ImportError: {reason}" in done.stderr
