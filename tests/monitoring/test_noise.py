"""The noise meter against what it should give, on gradients whose noise is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mtlkernels import NoiseMeter

pytestmark = pytest.mark.usefixtures("one_thread")
T, N, M, SAMPLES, STEPS = 3, 60, 8, 4, 150


def truth() -> Tensor:
    """(T, N) gradients without noise: two of them opposed, at a cosine of -0.5."""
    G = torch.zeros(T, N, dtype=torch.float64)
    G[0, 0], G[1, 0], G[1, 1], G[2, 2] = 1.0, -1.0, math.sqrt(3), 3.0
    return G


def split(G: Tensor) -> list[list[Tensor]]:
    return [[row[:10].view(2, 5), row[10:]] for row in G.float()]


def noise(generator: torch.Generator) -> Tensor:
    """(T, N) of one micro-batch's mean: deviation 1 a sample and number, half of it shared."""
    own = torch.randn(T, N, generator=generator, dtype=torch.float64)
    shared = torch.randn(1, N, generator=generator, dtype=torch.float64)
    return (own + shared) * math.sqrt(0.5 / SAMPLES)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sums_of_16_bit_gradients_are_not_rounded_again(dtype) -> None:
    """Nor do they overflow."""
    micro = [torch.randn(2, 30, generator=torch.Generator().manual_seed(m)) for m in range(64)]
    if dtype == torch.float16:
        micro = [20000 * (1 + G.abs().clamp_max(1)) for G in micro]
    rounded = [G.to(dtype) for G in micro]
    found = []
    for grads in (rounded, [G.double() for G in rounded]):
        meter = NoiseMeter(SAMPLES)
        for G in grads:
            meter.add([[row] for row in G])
        found.append(meter.step())
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5 * found[1].diagonal().max().item())


@pytest.fixture(scope="module")
def simulated() -> tuple[NoiseMeter, Tensor, Tensor]:
    """A meter after many steps, each step's U, and the mean Gram matrix of the steps' batches."""
    generator = torch.Generator().manual_seed(0)
    meter, found, plain = NoiseMeter(SAMPLES), [], []
    for _ in range(STEPS):
        micro = [truth() + noise(generator) for _ in range(M)]
        for G in micro:
            meter.add(split(G))
        found.append(meter.step())
        mean = torch.stack(micro).mean(dim=0)
        plain.append(mean @ mean.T)
    return meter, torch.stack(found), torch.stack(plain).mean(dim=0)


def test_the_gram_matrix_is_that_without_noise(simulated) -> None:
    meter, found, plain = simulated
    K = truth() @ truth().T
    torch.testing.assert_close(meter.gram(), found.mean(dim=0))
    error = found.std(dim=0) / math.sqrt(STEPS)  # of the mean
    assert ((meter.gram() - K).abs() < 4 * error).all()
    assert error.max() < 0.15
    excess = N / SAMPLES / M  # of a batch's own Gram matrix; half of it off the diagonal
    assert ((plain - K).diagonal() > 0.8 * excess).all()
    assert plain[0, 1] - K[0, 1] > 0.3 * excess
    norms = meter.gram().diagonal().sqrt()
    assert (meter.gram()[0, 1] / norms[0] / norms[1]).item() == pytest.approx(-0.5, abs=0.06)


def test_the_noise_scale_is_trace_over_squared_norm(simulated) -> None:
    """A sample's covariance is the identity, so its trace is N."""
    expected = N / truth().square().sum(dim=1)
    torch.testing.assert_close(simulated[0].noise_scale(), expected, rtol=0.12, atol=0)


def test_u_is_the_mean_product_between_different_micro_batches() -> None:
    generator = torch.Generator().manual_seed(1)
    micro = torch.randn(3, T, N, generator=generator, dtype=torch.float64)
    meter = NoiseMeter(1)
    for G in micro:
        meter.add([[row[:10], row[10:]] for row in G])
    products = [micro[m] @ micro[n].T for m in range(3) for n in range(3) if m != n]
    torch.testing.assert_close(meter.step(), torch.stack(products).mean(dim=0))


def test_no_noise_is_none_and_what_is_given_stays() -> None:
    meter, grads = NoiseMeter(5), split(truth())
    before = [[grad.clone() for grad in row] for row in grads]
    for _ in range(2):
        meter.add(grads)
    torch.testing.assert_close(meter.step(), truth() @ truth().T, rtol=1e-6, atol=1e-9)
    assert meter.noise_scale().abs().max() < 1e-5
    for row, old in zip(grads, before, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(row, old, strict=True))


def test_absent_gradients_count_as_zero() -> None:
    a, b = torch.tensor([1.0, 2.0]), torch.tensor([3.0])
    with_none, with_zero = NoiseMeter(1), NoiseMeter(1)
    for first, second in ((a, None), (a, b), (None, b)):
        with_none.add([[first, second], [a, None]])
        zeros = torch.zeros(2) if first is None else first, torch.zeros(1) if second is None else b
        with_zero.add([zeros, [a, torch.zeros(1)]])
    torch.testing.assert_close(with_none.step(), with_zero.step())


def test_a_bad_step_is_left_out_of_the_averages() -> None:
    meter, clean = NoiseMeter(1), NoiseMeter(1)
    for step in range(3):
        for m in range(2):
            G = truth() + m
            clean.add(split(G))
            meter.add(split(G * (math.inf if step == 1 else 1)))
        clean.step()
        assert meter.step().isfinite().all() == (step != 1)
    assert torch.equal(meter.gram(), clean.gram())
    assert torch.equal(meter.noise_scale(), clean.noise_scale())


def test_wrong_use_is_told() -> None:
    for samples in (0, 1.5, True):
        with pytest.raises(ValueError, match="whole number"):
            NoiseMeter(samples)
    meter = NoiseMeter(1)
    for ask in (meter.gram, meter.noise_scale):
        with pytest.raises(ValueError, match="no step has ended"):
            ask()
    meter.add(split(truth()))
    with pytest.raises(ValueError, match="two or more"):
        meter.step()
    with pytest.raises(ValueError, match="the same tasks and parameters"):
        meter.add(split(truth())[:2])
    with pytest.raises(ValueError, match=r"task 0, parameter 1: .* \(1,\) follows one of \(50,\)"):
        meter.add([[row[0], torch.zeros(1)] for row in split(truth())])
    meter.add(split(truth()))
    assert meter.step().isfinite().all()
