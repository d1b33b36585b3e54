"""The ops on a CUDA device, by whichever backend MTLKERNELS_BACKEND names, native or Triton.

`make gpu-check` runs this file once for each. Where there is no CUDA device all of it skips.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hard_grams import KINDS, hard_gram
from inputs import (
    FEW,
    SAMPLES,
    check_combine,
    check_gram,
    expected_combine,
    expected_gram,
    sample,
    sample_weights,
)
from test_cagrad import cagrad_certificate
from test_wide_weights import hostile
from torch import Tensor

import mtlkernels
from mtlkernels import CAGrad, GradDrop, PCGrad, Status, ops, reference

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

PACKAGE = Path(mtlkernels.__file__).parent.parent


def cuda_sample(name: str, dtype: torch.dtype) -> tuple[list[Tensor], int]:
    """A sample in its own layouts: a copy that keeps storage, strides and what is shared."""
    grads, num_tasks = sample(name, dtype)
    moved: dict[int, Tensor] = {}
    for grad in grads:
        storage = grad.untyped_storage()
        if storage.data_ptr() not in moved:
            whole = torch.empty(0, dtype=dtype).set_(storage)
            moved[storage.data_ptr()] = whole.cuda()
    return [
        moved[g.untyped_storage().data_ptr()].as_strided(g.shape, g.stride(), g.storage_offset())
        for g in grads
    ], num_tasks


def served() -> str:
    return mtlkernels.backends()["cuda"]["gram"]["serves"]


def test_the_forced_backend_serves() -> None:
    forced = os.environ.get("MTLKERNELS_BACKEND")
    assert served() == forced if forced else served() in ("native", "triton")


@pytest.mark.parametrize("name", [n for n in SAMPLES if n != "segments_of_several_blocks"])
def test_numerics(name: str, float_dtype: torch.dtype) -> None:
    grads, num_tasks = cuda_sample(name, float_dtype)
    weights = sample_weights(num_tasks)
    host = [grad.cpu() for grad in grads]
    check_gram(ops.gram(grads, num_tasks).cpu(), host, num_tasks)
    check_combine(ops.combine(grads, weights.cuda()).cpu(), host, weights)


@pytest.mark.parametrize("beta", [1.0, -0.5])
@pytest.mark.parametrize("name", [*FEW, "numel_1025", "tasks_17"])
def test_combine_out(name: str, beta: float, float_dtype: torch.dtype) -> None:
    grads, num_tasks = cuda_sample(name, float_dtype)
    weights = sample_weights(num_tasks)
    out = torch.ones_like(ops.combine(grads, weights.cuda()))
    old = out.cpu()
    ops.combine_out(grads, weights.cuda(), out, beta)
    check_combine(out.cpu(), [grad.cpu() for grad in grads], weights, old, beta)


@pytest.mark.parametrize("beta", [0.0, -0.5])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", [*FEW, "numel_1025", "tasks_17"])
def test_combine_out_into_float32(name: str, beta: float, dtype: torch.dtype) -> None:
    grads, num_tasks = cuda_sample(name, dtype)
    weights = sample_weights(num_tasks)
    out = torch.ones_like(ops.combine(grads, weights.cuda()), dtype=torch.float32)
    old = out.cpu()
    ops.combine_out(grads, weights.cuda(), out, beta)
    host = [grad.cpu() for grad in grads]
    check_combine(out.cpu(), host, weights, old, beta, torch.float32)


@pytest.mark.parametrize("beta", [0.0, 1.0, -1e-50, 1e39])
@pytest.mark.parametrize("T", [1, 2, 9, 17])
def test_weights_outside_float32(T: int, beta: float, float_dtype: torch.dtype) -> None:
    host, weights = hostile(float_dtype, T)
    old = (1e-38 if beta > 1 else 1.0) * torch.ones(len(reference.combine(host, weights)))
    old = old.to(float_dtype)
    expected, scale = expected_combine(host, weights, old, beta)
    out = old.cuda()
    ops.combine_out([grad.cuda() for grad in host], weights.cuda(), out, beta)
    info = torch.finfo(float_dtype)
    bound = info.eps * expected.abs().clamp_min(info.smallest_normal) + 1e-15 * T * scale
    assert ((out.cpu().double() - expected).abs() <= bound).all()


@pytest.mark.parametrize("scale", [1e-25, 1e-19, 1e19, 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["ordinary", "tasks_13"])
def test_squares_outside_float32(name: str, scale: float, dtype: torch.dtype) -> None:
    grads, num_tasks = sample(name, torch.float64)
    grads = [(scale * grad).to(dtype) for grad in grads]
    expected = expected_gram(grads, num_tasks)
    norms = expected.diagonal().sqrt()
    K = ops.gram([grad.cuda() for grad in grads], num_tasks).cpu()
    assert ((K - expected).abs() <= 1e-6 * torch.outer(norms, norms)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_denormals_count(dtype: torch.dtype) -> None:
    steps = torch.arange(1, 60) / 64 * torch.finfo(dtype).smallest_normal
    host = [steps.to(dtype), (-2 * steps).flip(0).to(dtype)]
    grads = [grad.cuda() for grad in host]
    K = ops.gram(grads, 2).cpu()
    torch.testing.assert_close(K, expected_gram(host, 2), rtol=1e-6, atol=0)
    expected = (host[0].double() + host[1].double()).to(dtype)
    assert torch.equal(ops.combine(grads, torch.ones(2).cuda())[:59].cpu(), expected)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_diagonal_names_the_task_with_nan(bad: float, float_dtype: torch.dtype) -> None:
    grads = [torch.randn(5000, device="cuda").to(float_dtype) for _ in range(3)]
    grads[1][700] = bad
    assert ops.gram(grads, 3).diagonal().isfinite().tolist() == [True, False, True]
    assert not ops.combine(grads, torch.ones(3, device="cuda"))[700].isfinite()


def rows(num_tasks: int = 3, scale: float = 1.0) -> list[list[Tensor]]:
    generator = torch.Generator(device="cuda").manual_seed(num_tasks)
    shapes = [(300, 401), (70_001,), (5, 7)]
    return [
        [scale * torch.randn(s, generator=generator, device="cuda") for s in shapes]
        for _ in range(num_tasks)
    ]


def answers(task_grads: list[list[Tensor]], method: torch.nn.Module) -> list[Tensor]:
    direction, report = mtlkernels.aggregate(task_grads, method)
    return [x for x in (report.gram, report.weights) if x is not None] + direction


@pytest.mark.parametrize("name", [*FEW, "numel_1025", "tasks_17"])
@pytest.mark.parametrize("leak", [0.0, 0.25])
def test_graddrop(name: str, leak: float, float_dtype: torch.dtype) -> None:
    grads, num_tasks = cuda_sample(name, float_dtype)
    numbers = (torch.tensor(-(10**12) - 7), torch.tensor((3 << 40) + 5))
    numbers = (*numbers, torch.full((num_tasks,), leak, dtype=torch.float64))
    found = ops.graddrop(grads, num_tasks, *(x.cuda() for x in numbers)).cpu()
    expected = reference.graddrop([grad.cpu() for grad in grads], num_tasks, *numbers)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", [*FEW, "numel_1025", "tasks_17"])
def test_other_row_ops(name: str, float_dtype: torch.dtype) -> None:
    grads, T = cuda_sample(name, float_dtype)
    host = [grad.cpu() for grad in grads]
    trim = (T - 1) // 2
    found, expected = ops.trimmed_mean(grads, T, trim), reference.trimmed_mean(host, T, trim)
    torch.testing.assert_close(found.cpu(), expected)
    wide = torch.promote_types(float_dtype, torch.float32)
    scale, rate = torch.linspace(0.5, 2, T).double(), torch.tensor(0.3).double()
    states = torch.zeros(2, T, len(expected), dtype=wide)
    tracked, grown = states.clone().cuda()
    K = ops.track_gram(grads, T, scale.cuda(), rate.cuda(), tracked)
    torch.testing.assert_close(K.cpu(), reference.track_gram(host, T, scale, rate, states[0]),
                               rtol=1e-5, atol=1e-5)  # fmt: skip
    e = ops.excess(grads, T, 1e-7, grown)
    torch.testing.assert_close(e.cpu(), reference.excess(host, T, 1e-7, states[1]),
                               rtol=1e-5, atol=1e-5)  # fmt: skip
    torch.testing.assert_close(torch.stack([tracked, grown]).cpu(), states)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_state_keeps_what_is_finite(bad: float) -> None:
    grads = [torch.ones(5000, device="cuda") for _ in range(3)]
    grads[1][700] = bad
    states = torch.ones(2, 3, ops.flat_offsets([5000])[-1], device="cuda")
    ones = torch.ones(3, dtype=torch.float64, device="cuda")
    K = ops.track_gram(grads, 3, ones, 0.5 * ones[0], states[0])
    assert K.isnan().tolist() == [[i == 1 or j == 1 for j in range(3)] for i in range(3)]
    assert ops.excess(grads, 3, 1e-7, states[1]).isnan().tolist() == [False, True, False]
    assert states.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("T", [1, 2, 5, 19, 64])
def test_cagrad(kind: str, T: int) -> None:
    K = hard_gram(kind, T, 3)
    weights, status = ops.cagrad(K.cuda(), 0.4)
    assert status.tolist() == reference.cagrad(K, 0.4, 0, False)[1].tolist()
    assert cagrad_certificate(K, weights.cpu(), 0.4) <= 1e-9


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


@pytest.fixture
def errors_on_sync() -> Iterator[Callable[[], None]]:
    yield lambda: torch.cuda.set_sync_debug_mode("error")
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("method", [PCGrad(), CAGrad(), GradDrop()], ids=repr)
def test_a_step_does_not_synchronise(
    method: torch.nn.Module, errors_on_sync: Callable[[], None]
) -> None:
    task_grads, method = rows(), method.cuda()
    answers(task_grads, method)
    torch.cuda.synchronize()
    errors_on_sync()
    answers(task_grads, method)


def test_a_matrix_that_is_no_gram_is_flagged_without_a_look(
    errors_on_sync: Callable[[], None],
) -> None:
    K, method = torch.eye(3, dtype=torch.float64, device="cuda"), PCGrad().cuda()
    K[0, 2] = 0.5
    method(K)
    torch.cuda.synchronize()
    errors_on_sync()
    weights = method(K)
    torch.cuda.set_sync_debug_mode("default")
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


def test_a_step_is_three_launches() -> None:
    if served() != "native":
        pytest.skip("Triton adds the segments up in a launch of its own")
    grads = [grad for row in rows() for grad in row]
    method = PCGrad().cuda()

    def step() -> Tensor:
        return ops.combine(grads, method(ops.gram(grads, 3)))

    step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        step()
        torch.cuda.synchronize()
    on_device = torch.autograd.DeviceType.CUDA
    names = [event.name for event in profile.events() if event.device_type == on_device]
    assert len(names) == 3, names


def test_more_than_two_to_the_31_elements() -> None:
    n = 2**31 + 17
    if torch.cuda.mem_get_info()[0] < 3 * 2 * n:
        pytest.skip("not enough memory for 2 bfloat16 tensors of 2^31 elements")
    grad = torch.zeros(n, dtype=torch.bfloat16, device="cuda")
    grad[0], grad[-1] = 3, 4
    assert ops.gram([grad], 1).item() == 25
    out = ops.combine([grad], torch.full((1,), 2.0, device="cuda"))
    assert out.shape == (2**31 + 32,)
    assert out[[0, n - 1, n]].tolist() == [6, 8, 0]


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
