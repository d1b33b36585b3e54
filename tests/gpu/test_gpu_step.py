"""Whole training steps on a GPU: captured in a CUDA graph, compiled, and without a wait."""

from __future__ import annotations

import copy

import pytest
import torch
from gpu_tools import errors_on_sync, on_gpu
from torch_versions import compiles_steps
from trunk_and_heads import Model

import mtlkernels
from mtlkernels import CAGrad, MTLOptimizer, PCGrad

pytestmark = on_gpu


def pair(**options: object) -> tuple[Model, MTLOptimizer]:
    torch.manual_seed(0)
    model = Model().cuda()
    base = torch.optim.AdamW(model.parameters(), lr=torch.tensor(1e-2), capturable=True)
    return model, MTLOptimizer(base, PCGrad(seed=1).cuda(), **options)


def batches(count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(6, 5, generator=generator).cuda() for _ in range(count)]


@pytest.mark.parametrize("options", [{}, {"collect": "batched"}], ids=str)
def test_a_whole_step_in_a_cuda_graph(options) -> None:
    """Forward, backwards, Gram matrix, weights, .grad and update are replayed with other inputs."""
    (model, optimizer), (twin, other) = pair(**options), pair(**options)
    x = torch.empty(6, 5, device="cuda")

    def step() -> mtlkernels.Report:
        optimizer.zero_grad(set_to_none=False)
        report = optimizer.backward(model(x))
        optimizer.step()
        return report

    def eager(batch: torch.Tensor) -> mtlkernels.Report:
        other.zero_grad(set_to_none=False)
        report = other.backward(twin(batch))
        other.step()
        return report

    warm, *rest = batches(5)
    x.copy_(warm)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    for _ in range(3):
        eager(warm)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        report = step()
    for batch in rest:
        x.copy_(batch)
        graph.replay()
        expected = eager(batch)
        torch.testing.assert_close(report.weights, expected.weights)
        for a, b in zip(model.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(a, b)


# Inductor's and torch's own: float32 products are not tensor cores', torch.jit is deprecated.
@pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores", "ignore:.torch.")
@compiles_steps
@pytest.mark.parametrize("mode", [None, "reduce-overhead"])
def test_compile_step(mode) -> None:
    (model, optimizer), (twin, other) = pair(), pair()
    step = mtlkernels.compile_step(lambda x: optimizer.backward(model(x)), mode=mode)
    for batch in batches(5):
        optimizer.zero_grad()
        other.zero_grad()
        torch.compiler.cudagraph_mark_step_begin()
        step(batch)
        other.backward(twin(batch))
        optimizer.step()
        other.step()
        for a, b in zip(model.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


WAYS = [
    {},
    {"collect": "batched"},
    {"apply": "backward"},
    {"every": 2},
    {"rows_dtype": torch.bfloat16},
]


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("options", WAYS, ids=str)
def test_no_way_of_stepping_waits_for_the_device(options, scaled) -> None:
    """With a scaler, reused weights are read; nothing else is."""
    model, optimizer = pair(**options)
    scaler = torch.amp.GradScaler("cuda") if scaled and "every" not in options else None
    inputs = batches(4)
    optimizer.backward(model(inputs[0]), scaler=scaler)
    torch.cuda.synchronize()
    with errors_on_sync():
        for x in inputs[1:]:
            optimizer.zero_grad()
            optimizer.backward(model(x), scaler=scaler)


def test_a_fused_step_under_a_scaler_and_autocast() -> None:
    torch.manual_seed(0)
    model = Model().cuda()
    start = copy.deepcopy(model)
    base = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)
    optimizer = MTLOptimizer(base, CAGrad())
    scaler = torch.amp.GradScaler("cuda", init_scale=1024.0)
    for x in batches(3):
        with torch.autocast("cuda", dtype=torch.float16):
            losses = model(x)
        optimizer.zero_grad()
        optimizer.backward(losses, scaler=scaler)
        scaler.step(optimizer)
        scaler.update()
    for a, b in zip(model.parameters(), start.parameters(), strict=True):
        assert 0 < (a - b).abs().max() < 0.1  # at most lr a step, not 1024 times that
