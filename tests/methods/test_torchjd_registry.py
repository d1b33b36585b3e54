"""What torchjd has and this package has not: both registries, walked."""

from __future__ import annotations

import pytest
import torch
from loss_methods import batches, evaluate
from torchjd import aggregation, scalarization

import mtlkernels
from mtlkernels import COSMOS, PBI
from mtlkernels.methods import METHODS

pytestmark = pytest.mark.usefixtures("one_thread")

# Theirs under another name here.
RENAMED = {"constant": "fixedweights", "random": "randomweights", "geometricmean": "gls"}
# A rule of federated learning that picks one worker's gradient: it knows no tasks.
LEFT_OUT = {"krum"}
BASES = {"aggregator", "gramianweightedaggregator", "weightedaggregator", "scalarizer", ""}


def theirs() -> set[str]:
    """Names of torchjd's aggregators, weightings and scalarizers, as they would be called here."""
    names = {
        name.lower().removesuffix("weighting")
        for module in (aggregation, scalarization)
        for name in module.__all__
    }
    return {RENAMED.get(name, name) for name in names - BASES}


def test_the_difference_of_both_registries() -> None:
    assert len(theirs()) > 25
    assert theirs() - METHODS.keys() == LEFT_OUT
    assert METHODS.keys() - theirs(), "and what torchjd has not"


@pytest.mark.parametrize("preference", [None, [1.0, 3.0, 0.5]])
def test_cosmos_is_torchjds(preference) -> None:
    shares = torch.tensor(preference or [1.0] * 3).double()
    shares = shares / shares.sum()
    peer = scalarization.COSMOS(0.7, shares)
    for losses in batches(3, 5):
        leaf = losses.clone().requires_grad_()
        peer(leaf).backward()
        scalar, weights = evaluate(COSMOS(0.7, preference), losses)
        torch.testing.assert_close(scalar, peer(losses), rtol=1e-7, atol=1e-9)
        torch.testing.assert_close(weights, leaf.grad, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("preference", [None, [1.0, 3.0, 0.5]])
@pytest.mark.parametrize("reference", [0.0, [-1.0, 0.0, 1e-3]])
def test_pbi_is_torchjds(preference, reference) -> None:
    ray = torch.tensor(preference or [1.0] * 3).double()
    point = torch.tensor(reference).double().expand(3)
    peer = scalarization.PBI(5.0, ray, point)
    for losses in batches(3, 5):
        leaf = losses.clone().requires_grad_()
        peer(leaf).backward()
        scalar, weights = evaluate(PBI(5.0, preference, reference=reference), losses)
        torch.testing.assert_close(scalar, peer(losses), rtol=1e-7, atol=1e-6)
        torch.testing.assert_close(weights, leaf.grad, rtol=1e-5, atol=1e-6)


def test_pbi_on_the_ray_has_a_gradient() -> None:
    scalar, weights = evaluate(PBI(), torch.tensor([2.0, 2.0]).double())
    torch.testing.assert_close(scalar, torch.tensor(8.0).double().sqrt())
    torch.testing.assert_close(weights, torch.full((2,), 0.5).double().sqrt())


def test_cosmos_of_losses_that_are_all_zero() -> None:
    scalar, weights = evaluate(COSMOS(), torch.zeros(2).double())
    assert scalar == 0
    assert weights.isfinite().all()
    assert mtlkernels.COSMOS(0.0)(torch.tensor([1.0, 3.0])) == 2
