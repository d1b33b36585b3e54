"""A CUDA device over time: streams, graphs, launches, and that nothing waits for it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from gpu_tools import answers, errors_on_sync, launches, on_gpu, rows, served
from torch import Tensor

import mtlkernels
from mtlkernels import CAGrad, GradDrop, PCGrad, Status, ops

pytestmark = on_gpu

PACKAGE = Path(mtlkernels.__file__).parent.parent


def test_repeats_bitwise() -> None:
    first, again = (answers(rows(), PCGrad(seed=3).cuda()) for _ in range(2))
    assert all(map(torch.equal, first, again))


def test_current_stream() -> None:
    """Work follows what its own stream is busy with."""
    grads = [torch.zeros(1 << 20, device="cuda") for _ in range(2)]
    ops.gram(grads, 2)
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(100_000_000)
        for grad in grads:
            grad.fill_(1)
        K = ops.gram(grads, 2)
        out = ops.combine(grads, torch.ones(2, device="cuda"))
    torch.cuda.synchronize()
    assert (K == 1 << 20).all()
    assert (out == 2).all()


@pytest.mark.parametrize("method", [PCGrad(), CAGrad(), GradDrop()], ids=repr)
def test_a_step_does_not_synchronise(method: torch.nn.Module) -> None:
    task_grads, method = rows(), method.cuda()
    answers(task_grads, method)
    torch.cuda.synchronize()
    with errors_on_sync():
        answers(task_grads, method)


def test_a_matrix_that_is_no_gram_is_flagged_without_a_look() -> None:
    K, method = torch.eye(3, dtype=torch.float64, device="cuda"), PCGrad().cuda()
    K[0, 2] = 0.5
    method(K)
    torch.cuda.synchronize()
    with errors_on_sync():
        weights = method(K)
    assert weights.isnan().all()
    assert method.status.tolist() == [Status.INVALID_GRAM, 0, Status.INVALID_GRAM]


def test_graph_replays_with_changed_gradients() -> None:
    grads = [grad for row in rows() for grad in row]
    weights = torch.tensor([1.0, -2.0, 0.5], device="cuda")

    def step() -> tuple[Tensor, Tensor]:
        return ops.gram(grads, 3), ops.combine(grads, weights)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        K, out = step()
    for scale in (2.0, -3.0):
        for grad in grads:
            grad.mul_(scale)
        graph.replay()
        expected = step()
        assert torch.equal(K, expected[0])
        assert torch.equal(out, expected[1])


def test_a_graph_beside_calls_on_other_streams() -> None:
    """Each counts its own blocks: none takes another's for its own."""
    grads = [torch.randn(1 << 20, device="cuda") for _ in range(3)]
    expected = ops.gram(grads, 3)
    streams = [torch.cuda.Stream() for _ in range(3)]
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        replayed = ops.gram(grads, 3)
    found = []
    for _ in range(50):
        with torch.cuda.stream(streams[0]):
            graph.replay()
        for stream in streams[1:]:
            with torch.cuda.stream(stream):
                found.append(ops.gram(grads, 3))
    torch.cuda.synchronize()
    assert all(torch.equal(K, expected) for K in (replayed, *found))


def test_an_evicted_plan_is_kept_for_the_stream_that_reads_it() -> None:
    """Triton's: its tables of blocks stay on the device, of a limited number of lists."""
    if served() != "triton":
        pytest.skip("native kernels take their tables by value")
    grads = [torch.ones(1 << 20, device="cuda")]
    ops.gram(grads, 1)
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(100_000_000)
        K = ops.gram(grads, 1)
    for size in range(1, 70):  # more lists than plans are kept of
        ops.gram([torch.ones(size, device="cuda")], 1)
    taken = [torch.zeros(4 * 256, dtype=torch.int64, device="cuda") for _ in range(64)]
    torch.cuda.synchronize()
    assert K.item() == 1 << 20
    del taken


def test_another_number_of_parameters_compiles_nothing() -> None:
    if served() != "triton":
        pytest.skip("native kernels are compiled when the package is built")
    from triton import knobs

    def step(params: int) -> None:
        grads = [torch.ones(64, device="cuda") for _ in range(3 * params)]
        ops.combine(grads, ops.gram(grads, 3).diagonal())

    step(5)
    compiled: list[object] = []
    before = knobs.runtime.jit_cache_hook
    knobs.runtime.jit_cache_hook = lambda **told: compiled.append(told)
    try:
        for params in (1, 2, 16, 33):
            step(params)
    finally:
        knobs.runtime.jit_cache_hook = before
    assert compiled == []


def test_a_step_is_three_launches() -> None:
    if served() != "native":
        pytest.skip("Triton adds the segments up in a launch of its own")
    grads = [grad for row in rows() for grad in row]
    method = PCGrad().cuda()

    def step() -> Tensor:
        return ops.combine(grads, method(ops.gram(grads, 3)))

    step()
    names = launches(step)
    assert len(names) == 3, names


SHORT = """
import torch
from mtlkernels import ops
grads = [torch.randn(n, device="cuda") for n in (3, 5000, 17)] * 3
ops.combine(grads, torch.ones(3, device="cuda") + 0 * ops.gram(grads, 3).sum())
torch.cuda.synchronize()
"""


@pytest.mark.skipif(shutil.which("compute-sanitizer") is None, reason="no compute-sanitizer")
@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_sanitizer(tool: str) -> None:
    done = subprocess.run(
        ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", sys.executable, "-c", SHORT],
        env={**os.environ, "PYTHONPATH": str(PACKAGE), "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
