"""The Gram methods as TorchJD's aggregators and weightings, in its own backward."""

from __future__ import annotations

import pickle

import pytest
import torch
import torchjd.aggregation as theirs
from gram_methods import ARGUMENTS, tasks_for
from torch import nn
from torchjd.aggregation import Aggregator, GramianWeightedAggregator, Weighting
from torchjd.autogram import Engine
from torchjd.autojac import backward, jac_to_grad

import mtlkernels
from mtlkernels import GramMethod, ops
from mtlkernels.integrations import torchjd as ours
from mtlkernels.methods import METHODS

GRAM = [cls for cls in METHODS.values() if issubclass(cls, GramMethod)]


def matrix(seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(3, 21, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("cls", GRAM, ids=lambda cls: cls.__name__)
def test_every_gram_method_has_both(cls) -> None:
    name = cls.__name__
    tasks = tasks_for(name, 3)
    made = ARGUMENTS[name](tasks) if name in ARGUMENTS else None
    aggregator = ours.MethodAggregator(made) if made else getattr(ours, name)()
    weighting = ours.MethodWeighting(made) if made else getattr(ours, f"{name}Weighting")()
    assert isinstance(aggregator, GramianWeightedAggregator)
    assert isinstance(weighting, Weighting)
    J = matrix()[:tasks]
    if name == "PerPart":  # of one part, which a Jacobian is; there is no class without arguments
        return
    if name in ("GradNorm", "LogLosses", "NTKWeights"):  # losses are not in a Jacobian
        with pytest.raises(ValueError, match="losses"):
            aggregator(J)
        return
    aggregator.method.reset()
    direction = aggregator(J)
    aggregator.method.reset()
    wanted, _ = mtlkernels.aggregate([[row] for row in J], aggregator.method)
    assert torch.equal(direction, wanted[0])
    weights = weighting(J @ J.mT)
    assert weights.shape == (tasks,)
    assert weights.dtype == J.dtype


@pytest.mark.parametrize("name", ["MGDA", "ConFIG", "Mean", "Sum", "IMTLG"])
def test_one_import_changes_and_the_direction_does_not(name) -> None:
    J = matrix()
    torch.testing.assert_close(
        getattr(ours, name)()(J), getattr(theirs, name)()(J), rtol=2e-2, atol=2e-2
    )


def test_their_name_for_a_preference() -> None:
    J, wanted = matrix(), torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    for name in ("UPGrad", "DualProj", "AlignedMTL"):
        found = getattr(ours, name)(pref_vector=wanted)(J)
        known = getattr(theirs, name)(pref_vector=wanted)(J)
        torch.testing.assert_close(found, known, rtol=1e-3, atol=1e-3)
    with pytest.raises(TypeError):
        ours.PCGrad(pref_vector=wanted)


def test_small_and_half_precision_jacobians() -> None:
    J = matrix()
    for scale in (1e-12, 1e12):
        torch.testing.assert_close(ours.UPGrad()(J * scale), ours.UPGrad()(J) * scale)
    half = matrix(dtype=torch.bfloat16)
    direction = ours.UPGrad()(half)
    assert direction.dtype == torch.bfloat16
    weights = mtlkernels.UPGrad()(ops.gram(list(half.unbind()), 3))
    torch.testing.assert_close(direction.double(), weights @ half.double(), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("by_gramian", [False, True])
def test_in_their_backward(by_gramian) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    x = torch.randn(5, 4, dtype=torch.float64)
    backward(list(model(x).square().mean(0)), inputs=model.parameters())
    jac_to_grad(model.parameters(), ours.UPGrad(), optimize_gramian_computation=by_gramian)
    found = [param.grad for param in model.parameters()]
    model.zero_grad()
    losses = list(model(x).square().mean(0))
    shared = list(model.parameters())
    mtlkernels.backward(losses, shared, mtlkernels.UPGrad(), shared=shared)
    for param, grad in zip(model.parameters(), found, strict=True):
        torch.testing.assert_close(param.grad, grad)


def test_in_their_engine() -> None:
    model = nn.Linear(4, 3).double()
    engine = Engine(model, batch_dim=None)
    losses = model(torch.ones(4, dtype=torch.float64)).square()
    weights = ours.UPGradWeighting()(engine.compute_gramian(losses))
    losses.backward(weights)
    assert model.weight.grad.isfinite().all()


def test_classes_and_refusals() -> None:
    assert ours.PCGrad is ours.PCGrad
    assert issubclass(ours.CAGrad, Aggregator)
    copied = pickle.loads(pickle.dumps(ours.CAGrad(c=0.2)))
    assert torch.equal(copied(matrix()), ours.CAGrad(c=0.2)(matrix()))
    assert repr(ours.CAGrad(c=0.2)) == "CAGrad(CAGrad(c=0.2, rescale=0, reduction='mean'))"
    for name in ("UW", "GradDrop", "pcgrad", "Nothing", "NothingWeighting"):
        with pytest.raises(AttributeError, match=name):
            getattr(ours, name)
    with pytest.raises(ValueError, match="dimension 2"):
        ours.UPGrad()(torch.ones(3))
