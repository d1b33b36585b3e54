"""AutoStep: the fit, what it rejects, and that nothing but the rate changes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from mtlkernels.auto_step import AutoStep, best_length

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_best_length_of_a_parabola_is_exact() -> None:
    a, b = 3.0, 2.0
    values = [7.0 - b * x + a * x * x / 2 for x in (0.0, -1.0, 1.0, 2.0)]
    assert best_length(values) == pytest.approx(b / a)


@pytest.mark.parametrize(
    "values",
    [
        [0.0, -1.0, -1.0, -4.0],  # a maximum
        [0.0, -1.0, 3.0, 8.0],  # the step goes uphill
        [0.0, 5.0, 1.0, -3.0],  # no parabola
        [1.0, 1.0, 1.0, 1.0],
        [1.0, math.nan, 1.0, 1.0],
        [1.0, 2.0, math.inf, 1.0],
    ],
)
def test_what_is_rejected(values: list[float]) -> None:
    assert best_length(values) is None


def test_the_rate_goes_to_the_best_of_a_quadratic() -> None:
    """L = 2 |w|^2: gradient descent is best at the rate 1 / 4."""
    w = nn.Parameter(torch.ones(3).double())
    sgd = torch.optim.SGD([w], lr=0.05)
    auto = AutoStep(sgd, lambda: 2 * w.square().sum(), every=1)
    for _ in range(60):
        w.data.normal_(generator=torch.Generator().manual_seed(1))
        w.grad = 4 * w.detach()
        best = auto.step()
        assert best is not None
    assert sgd.param_groups[0]["lr"] == pytest.approx(0.25, rel=1e-2)


@pytest.mark.parametrize("every", [1, 3])
def test_the_optimizer_steps_once_and_the_parameters_are_its(every: int) -> None:
    """With a loss that is always rejected, training is to the bit that without AutoStep."""
    found = []
    for auto_step in (True, False):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))
        adam = torch.optim.Adam(model.parameters(), lr=0.01)
        auto = AutoStep(adam, lambda model=model: model(torch.ones(2, 4)).sum() * 0, every)
        for _ in range(7):
            adam.zero_grad()
            model(torch.ones(2, 4)).square().sum().backward()
            if auto_step:
                assert auto.step() is None
            else:
                adam.step()
        assert adam.state[model[0].weight]["step"] == 7
        found.append([p.detach().clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_dropout_is_the_same_in_all_evaluations() -> None:
    torch.manual_seed(0)
    w, seen = nn.Parameter(torch.ones(64)), []
    sgd = torch.optim.SGD([w], lr=0.1)

    def closure() -> torch.Tensor:
        seen.append(nn.functional.dropout(torch.ones(64)))
        return w.sum()

    w.grad = torch.ones(64)
    AutoStep(sgd, closure, every=1).step()
    assert len(seen) == 4
    assert all(torch.equal(mask, seen[0]) for mask in seen)


def test_an_error_in_the_closure_leaves_the_parameters() -> None:
    w = nn.Parameter(torch.ones(2))
    sgd = torch.optim.SGD([w], lr=0.1)
    w.grad = torch.ones(2)
    with pytest.raises(ZeroDivisionError):
        AutoStep(sgd, lambda: 1 / 0, every=1).step()
    assert torch.equal(w.detach(), torch.ones(2) - 0.1)


def test_state_and_arguments() -> None:
    sgd = torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.1)
    auto = AutoStep(sgd, lambda: 0.0)
    auto.load_state_dict({"steps": 9})
    assert auto.state_dict() == {"steps": 9}
    with pytest.raises(ValueError, match="every=0"):
        AutoStep(sgd, lambda: 0.0, every=0)
